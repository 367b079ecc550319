"""Beyond Labels (Kabir et al. 2024): does tuning on labels and reasons beat labels alone?"""

from ethalign.reasons.labels import parse_label

__all__ = ["parse_label"]
