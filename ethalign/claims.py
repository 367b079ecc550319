"""The claims of a paper, each tested item by item, with a verdict in a word.

Which claims a paper makes, and what its score is, belongs to the studies.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from ethalign import metrics

VERDICTS = "claim data stratum difference low high p holm n verdict".split()  # noqa: SIM905
# Enough for p-values that can survive a correction for some forty comparisons.
DRAWS = 5000


def verdicts(rows: list[Any], better: int = 1) -> pd.DataFrame:
    """A verdict per comparison: ``holds``, ``reversed`` or ``not shown`` at a corrected 5 %.

    Args:
        rows: claim, data, stratum, difference, low, high, p, n.
        better: the sign that a difference has if a claim holds.

    Returns:
        Columns of ``VERDICTS``; ``holm`` is the p-value corrected by Holm over the table.
    """
    columns = ["claim", "data", "stratum", "difference", "low", "high", "p", "n"]
    table = pd.DataFrame(rows, columns=columns)
    table["holm"] = metrics.holm(table["p"].to_numpy(dtype=float))
    sure, sign = table["holm"] < 0.05, better * table["difference"]
    table["verdict"] = "not shown"
    table.loc[sure & (sign > 0), "verdict"] = "holds"
    table.loc[sure & (sign < 0), "verdict"] = "reversed"
    return table[VERDICTS]


def paired(
    name: str, first: pd.DataFrame, second: pd.DataFrame
) -> list[tuple[str, str, float, float, float, float, int]]:
    """Accuracies of two variants on the same items, by data set and stratum (exact McNemar).

    Args:
        name: of the runs, to stand behind the data set.
        first, second: rows with ``dataset, id, gold, stratum, verdict``.

    Returns:
        Data, stratum, difference (first minus second), low, high, p, n.
    """
    both = first.merge(second, on=["dataset", "id", "gold", "stratum"], suffixes=("_1", "_2"))
    found = []
    for dataset, part in both.groupby("dataset", sort=False):
        groups = {"all": part}
        if part["stratum"].nunique() > 1:
            groups |= {str(k): g for k, g in part.groupby("stratum")}
        for stratum, group in groups.items():
            right = [(group[f"verdict_{k}"] == group["gold"]).to_numpy() for k in (1, 2)]
            test = metrics.mcnemar(*right)
            found.append((f"{dataset}, {name}", stratum, *test))
    return found
