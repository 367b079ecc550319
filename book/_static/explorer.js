/* The explorer of predictions: search, filter, sort, and one item in full.
 *
 * A page holds sections of class "explorer" with a table of the first rows. Each names a script
 * file with all rows, packed by column (see ethalign/explorer.py); this file unpacks it and takes
 * the table over. Texts are never taken for HTML.
 */
(() => {
  "use strict";
  const PAGE = 50; // rows that are drawn at a time
  const MOST = 12; // a field with more values than this has no list to choose from
  const number = new Intl.NumberFormat("en");

  /** An element with properties, attributes (in `attr`), and children (texts or elements). */
  function make(tag, { attr = {}, ...properties } = {}, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    for (const [key, value] of Object.entries(attr)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  const unique = (values) => [...new Set(values)];

  /** A text for a CSV that no spreadsheet takes for a formula. */
  function cell(value) {
    const text = String(value ?? "");
    const taken = typeof value === "string" && /^(\s*[=+\-@]|[\t\r])/.test(text);
    return `"${(taken ? "'" : "") + text.replaceAll('"', '""')}"`;
  }

  function explore(root, data) {
    const { names, fields, words, predictors, verdicts } = data;
    const flagged = new Set(data.flagged);
    const gold = fields.find((field) => field.key === "gold");
    const models = unique(predictors.map((p) => p.model));
    const variants = unique(predictors.map((p) => p.variant));
    const seeds = unique(predictors.map((p) => p.seed)).sort((a, b) => a - b);
    const table = root.querySelector("table");
    const state = {
      query: "", chosen: {}, said: "", agree: "", open: false, page: 0, sort: null, down: false,
      models: new Set([models[0]]), variants: new Set(variants),
      seeds: new Set([predictors[0].seed]),
    };
    let rows = [], shown = [];

    const value = (field, k) => (field.codes[k] < 0 ? "" : field.values[field.codes[k]]);
    const verdict = (p, k) => (p.verdict[k] === null ? "" : verdicts[p.verdict[k]]);
    const chance = (p, k) => (p.p[k] === null ? "" : (p.p[k] / 1000).toFixed(2));
    const hidden = (k) => flagged.has(k) && !state.open;
    const text = (word, k) => (hidden(k) ? "hidden (content warning)" : word.values[k] ?? "");
    const strange = (p, k) => gold && p.verdict[k] !== null && verdict(p, k) !== value(gold, k);

    // What is searched: the item's name, and its words unless they are hidden.
    const plain = names.map((name) => name.toLowerCase());
    const full = names.map((name, k) =>
      [name, ...words.map((word) => word.values[k] ?? "")].join("\n").toLowerCase());

    /** Columns of the table: a title, the text of a cell, and what it is sorted by. */
    function columns() {
      const several = unique(shown.map((p) => p.model)).length > 1;
      const again = unique(shown.map((p) => p.seed)).length > 1;
      const title = (p) =>
        [p.variant, ...(several ? [p.model] : []), ...(again ? [`seed ${p.seed}`] : [])].join(", ");
      return [
        { title: "item", rank: (k) => names[k] },
        ...fields.map((field) => ({
          title: field.title, text: (k) => value(field, k), rank: (k) => field.codes[k],
        })),
        ...shown.map((p) => ({
          title: title(p),
          text: (k) => `${verdict(p, k)} ${chance(p, k)}`.trim(),
          rank: (k) => p.p[k] ?? p.verdict[k],
          mark: (k) => strange(p, k),
        })),
        ...words.map((word) => ({
          title: word.title, text: (k) => text(word, k), rank: (k) => text(word, k), words: true,
        })),
      ];
    }

    /** Work out anew which rows are shown, and in what order. */
    function select() {
      const query = state.query.trim().toLowerCase();
      const chosen = fields.filter((field) => state.chosen[field.key]);
      rows = [];
      for (let k = 0; k < names.length; k++) {
        if (query && !(hidden(k) ? plain : full)[k].includes(query)) continue;
        if (chosen.some((field) => value(field, k) !== state.chosen[field.key])) continue;
        const said = shown.map((p) => verdict(p, k)).filter((word) => word);
        if (state.said && !said.includes(state.said)) continue;
        if (state.agree === "differ" && new Set(said).size < 2) continue;
        if (state.agree === "agree" && new Set(said).size !== 1) continue;
        if (state.agree === "wrong" && !shown.some((p) => strange(p, k))) continue;
        if (state.agree === "right" && (!said.length || shown.some((p) => strange(p, k)))) continue;
        rows.push(k);
      }
      const column = columns()[state.sort];
      if (column) {
        const ranks = new Map(rows.map((k) => [k, column.rank(k)]));
        const way = state.down ? -1 : 1;
        rows.sort((a, b) => {
          const [one, two] = [ranks.get(a), ranks.get(b)];
          if (one === null || two === null) return (one === null) - (two === null); // last
          return way * (typeof one === "string" ? one.localeCompare(two) : one - two) || a - b;
        });
      }
      state.page = 0;
      draw();
    }

    /** The names of the columns, each a button that sorts. */
    function heads() {
      const cells = columns().map((column, k) => {
        const button = make("button", { type: "button", textContent: column.title });
        button.addEventListener("click", () => {
          state.down = state.sort === k && !state.down;
          state.sort = k;
          mark();
          select();
        });
        return make("th", { attr: { scope: "col" } }, button);
      });
      table.tHead.replaceChildren(make("tr", {}, ...cells));
      mark();
    }

    function mark() {
      for (const [k, head] of [...table.tHead.rows[0].cells].entries()) {
        const sorted = k === state.sort;
        head.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
      }
    }

    function draw() {
      const columns_ = columns(), from = state.page * PAGE;
      const some = rows.slice(from, from + PAGE);
      table.tBodies[0].replaceChildren(...some.map((k) => {
        const link = make("a", { href: address(k), textContent: names[k] });
        const cells = columns_.slice(1).map((column) => {
          const cell = make("td", { textContent: column.text(k) });
          if (column.words) cell.className = "explorer-words";
          if (column.mark?.(k)) {
            cell.className = "explorer-differs";
            cell.prepend("≠ ");
          }
          return cell;
        });
        return make("tr", {}, make("th", { attr: { scope: "row" } }, link), ...cells);
      }));
      const last = from + some.length;
      status.textContent =
        `${number.format(rows.length)} of ${number.format(names.length)} items` +
        (rows.length ? `, rows ${number.format(from + 1)} to ${number.format(last)} shown` : "");
      before.disabled = !from;
      after.disabled = last >= rows.length;
    }

    const address = (k) => `#${root.id}=${encodeURIComponent(names[k])}`;

    /** Show the item that the page's address names, if it names one of these. */
    function item(event) {
      const [id, name] = location.hash.slice(1).split("=");
      const k = id === root.id && name ? names.indexOf(decodeURIComponent(name)) : -1;
      panel.hidden = k < 0;
      if (k < 0) return;
      const heading = make("h3", { textContent: names[k], tabIndex: -1, id: `${root.id}-item` });
      const known = make("dl");
      for (const field of fields) {
        known.append(make("dt", {}, field.title), make("dd", {}, value(field, k)));
      }
      for (const word of words) {
        known.append(make("dt", {}, word.title), make("dd", {}, text(word, k)));
      }
      const wrote = predictors.some((p) => p.wrote?.[k]);
      const titles = ["variant", "model", "seed", "verdict", `p(${data.of})`];
      if (wrote) titles.push("wrote");
      const lines = predictors.filter((p) => p.verdict[k] !== null).map((p) => {
        const cells = [p.model, p.seed, (strange(p, k) ? "≠ " : "") + verdict(p, k), chance(p, k)];
        if (wrote) cells.push(hidden(k) ? "hidden (content warning)" : p.wrote?.[k] ?? "");
        return make("tr", {}, make("th", { attr: { scope: "row" } }, p.variant),
          ...cells.map((cell) => make("td", {}, String(cell))));
      });
      const close = make("button", { type: "button", textContent: "Close" });
      close.addEventListener("click", () => {
        history.replaceState(null, "", location.pathname + location.search);
        panel.hidden = true;
        search.focus();
      });
      panel.replaceChildren(heading, known,
        make("div", {
          className: "explorer-scroll", tabIndex: 0,
          attr: { role: "region", "aria-label": `Predictors on ${names[k]}` },
        }, make("table", {},
          make("thead", {}, make("tr", {},
            ...titles.map((title) => make("th", { attr: { scope: "col" } }, title)))),
          make("tbody", {}, ...lines))), close);
      heading.focus({ preventScroll: true });
      panel.scrollIntoView({ block: "start" });
    }

    /** A list of choices with its label. */
    function list(title, choices, pick) {
      const select_ = make("select", {}, ...choices.map(([key, label]) =>
        make("option", { value: key }, label)));
      select_.addEventListener("change", () => { pick(select_.value); select(); });
      return make("label", {}, title, select_);
    }

    /** Boxes to tick, for a set of what is shown. */
    function boxes(title, choices, set) {
      const labels = choices.map((choice) => {
        const box = make("input", { type: "checkbox", checked: set.has(choice) });
        box.addEventListener("change", () => {
          box.checked ? set.add(choice) : set.delete(choice);
          settle();
        });
        return make("label", {}, box, choice);
      });
      return make("fieldset", {}, make("legend", {}, title), ...labels);
    }

    /** Take the ticked predictors, and draw everything anew. */
    function settle() {
      shown = predictors.filter((p) =>
        state.models.has(p.model) && state.variants.has(p.variant) && state.seeds.has(p.seed));
      state.sort = null;
      heads();
      select();
    }

    /** Hand over the selected rows as a CSV. */
    function save() {
      const lines = [["item", ...[...fields, ...words].map((column) => column.title),
        ...shown.flatMap((p) => [`${p.variant}, ${p.model}, ${p.seed}`, `p(${data.of})`])]];
      for (const k of rows) {
        const said = shown.flatMap((p) => [verdict(p, k), p.p[k] === null ? "" : p.p[k] / 1000]);
        lines.push([names[k], ...fields.map((field) => value(field, k)),
          ...words.map((word) => text(word, k)), ...said]);
      }
      const content = lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
      const link = make("a", {
        href: URL.createObjectURL(new Blob([content], { type: "text/csv" })),
        download: `${root.id}.csv`,
      });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }

    const search = make("input", { type: "search" });
    search.addEventListener("input", () => { state.query = search.value; select(); });
    const status = make("p", { className: "explorer-status", attr: { role: "status" } });
    const before = make("button", { type: "button", textContent: "Previous rows" });
    const after = make("button", { type: "button", textContent: "Next rows" });
    before.addEventListener("click", () => { state.page--; draw(); });
    after.addEventListener("click", () => { state.page++; draw(); });
    const csv = make("button", { type: "button", textContent: "Save these rows (CSV)" });
    csv.addEventListener("click", save);
    const panel = make("section", {
      className: "explorer-item", hidden: true, attr: { "aria-labelledby": `${root.id}-item` },
    });

    const all = ["", "all"];
    const few = fields.filter((field) => field.values.length > 1 && field.values.length <= MOST);
    const compare = [all, ["differ", "predictors differ"], ["agree", "predictors agree"]];
    if (gold) compare.push(["wrong", `some differ from: ${gold.title}`], ["right", "none does"]);
    const controls = make("div", { className: "explorer-controls" },
      make("label", {}, words.length ? "Search items and texts" : "Search items", search),
      ...few.map((field) => list(field.title, [all, ...field.values.map((v) => [v, v])],
        (picked) => { state.chosen[field.key] = picked; })),
      list("some predictor says", [all, ...verdicts.map((v) => [v, v])],
        (picked) => { state.said = picked; }),
      list("disagreement", compare, (picked) => { state.agree = picked; }));
    if (models.length > 1) controls.append(boxes("Models", models, state.models));
    controls.append(boxes("Variants", variants, state.variants));
    if (seeds.length > 1) controls.append(boxes("Training seeds", seeds, state.seeds));
    if (flagged.size) {
      const box = make("input", { type: "checkbox" });
      box.addEventListener("change", () => { state.open = box.checked; select(); item(); });
      controls.append(make("p", { className: "explorer-warning" },
        make("strong", {}, "Content warning. "),
        `The texts of ${number.format(flagged.size)} items may be hateful; they are hidden. `,
        make("label", {}, box, "Show them")));
    }
    table.caption.textContent =
      `Verdict and p(${data.of}) of each predictor` + (gold ? "; ≠ where people say otherwise" : "");
    root.querySelector("noscript")?.remove();
    root.prepend(controls, panel, status);
    root.append(make("p", { className: "explorer-pages" }, before, after, csv));
    settle();
    window.addEventListener("hashchange", item);
    item();
    root.dataset.ready = "true";
  }

  function begin() {
    for (const root of document.querySelectorAll("section.explorer[data-source]")) {
      const script = make("script", { src: root.dataset.source });
      script.addEventListener("load", () => explore(root, window.explorerData[root.id]));
      document.head.append(script);
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
