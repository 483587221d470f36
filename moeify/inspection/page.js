"use strict";
const byId = (id) => document.getElementById(id);
const made = (tag, content, attributes = {}) => {
  const element = document.createElement(tag);
  element.append(...[content].flat());
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;

// Tables that sort. A table that is filled again stays sorted.
const sorted = (table) => {
  const heads = [...table.querySelectorAll("th")];
  const column = heads.findIndex((head) => head.hasAttribute("aria-sort"));
  if (column < 0) return;
  const down = heads[column].getAttribute("aria-sort") === "descending";
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]).sort(([x], [y]) => {
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
};
for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.querySelectorAll("th")) {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sorted(table);
    });
  }
}

// What is pointed at says more beside itself.
const tip = made("div", "", { id: "tip", role: "status", hidden: "" });
document.body.append(tip);
const tell = (text, event) => {
  tip.hidden = !text;
  tip.textContent = text;
  if (!text) return;
  const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(Math.min(event.pageX + 8, right), 0)}px`;
  tip.style.top = `${event.pageY + 18}px`;
};

const held = byId("layer-data");
if (held) {
  const data = JSON.parse(held.textContent);
  const slider = byId("layer"), slice = byId("slice"), table = byId("experts"), search = byId("search");
  const name = (expert) => data.names[expert] ?? "no expert";

  // The experts of one layer, or those of every layer that the search finds.
  const row = (layer, expert) => {
    const cells = [made("td", String(layer.layer), { "data-value": layer.layer })];
    cells.push(made("td", name(expert), { "data-value": expert, class: "words" }));
    const load = layer.load[expert], bar = made("i", "", { style: `width:${Math.min(load, 2) * 50}%` });
    cells.push(made("td", [load.toFixed(2), made("span", bar, { class: "load" })], { "data-value": load }));
    cells.push(made("td", layer.gate[expert].toFixed(2), { "data-value": layer.gate[expert] }));
    for (const share of layer.domains?.[expert] ?? []) {
      const over = share / data.baseline - 1, much = Math.min(Math.abs(over), 1).toFixed(2);
      const kind = over > 0 ? "shade up" : "shade down";
      cells.push(made("td", percent(share), { "data-value": share, class: kind, style: `--much:${much}` }));
    }
    if (layer.meets) {
      const [other, share] = layer.meets[expert] ?? [];
      const said = other === undefined ? "-" : `${name(other)} ${percent(share)}`;
      cells.push(made("td", said, { "data-value": share ?? 0 }));
    }
    if (layer.tokens) {
      const seen = layer.tokens[expert].flatMap(([text, share]) => [made("code", text), ` ${percent(share)}  `]);
      cells.push(made("td", seen, { class: "words" }));
    }
    return made("tr", cells);
  };
  const found = (layer, words) => layer.load.map((_, expert) => expert).filter((expert) => {
    const own = layer.own ? data.domains[layer.own[expert]] : "";
    const tokens = (layer.tokens?.[expert] ?? []).map(([text]) => text);
    return [name(expert), own, ...tokens].some((text) => text.toLowerCase().includes(words));
  });
  const most = 300;
  const fill = () => {
    const words = search.value.toLowerCase();
    const chosen = words ? data.layers : [data.layers[slider.value]];
    const hits = chosen.flatMap((layer) => (words ? found(layer, words) : [...layer.load.keys()])
      .map((expert) => [layer, expert]));
    table.tBodies[0].replaceChildren(...hits.slice(0, most).map(([layer, expert]) => row(layer, expert)));
    sorted(table);
    byId("hits").textContent = words ? `${hits.length} of all layers` + (hits.length > most ? `, the first ${most}` : "") : "";
  };

  // Which experts meet: the square of one layer, against chance.
  const canvas = byId("meeting");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colours = () => (dark.matches
    ? [[67, 147, 195], [42, 45, 49], [214, 96, 77], [22, 24, 27]]
    : [[33, 102, 172], [247, 247, 247], [178, 24, 43], [224, 224, 224]]);
  let square = new Uint8Array();
  const draw = (layer) => {
    const count = layer.load.length, [few, even, many, none] = colours();
    square = Uint8Array.from(atob(layer.meeting), (c) => c.charCodeAt(0));
    canvas.width = canvas.height = count;
    const picture = new ImageData(count, count);
    square.forEach((value, place) => {
      const far = Math.abs(value - 128) / 127, end = value > 128 ? many : few;
      const colour = value === 0 ? none : even.map((part, n) => part + (end[n] - part) * Math.min(far, 1));
      picture.data.set([...colour, 255], 4 * place);
    });
    canvas.getContext("2d").putImageData(picture, 0, 0);
  };
  canvas?.addEventListener("mousemove", (event) => {
    const count = canvas.width, at = (value, size) => Math.min(Math.floor((value / size) * count), count - 1);
    const [first, other] = [at(event.offsetY, canvas.clientHeight), at(event.offsetX, canvas.clientWidth)];
    const value = square[first * count + other];
    const times = value === 255 ? "at least 2.0" : ((value - 1) / 127).toFixed(1);
    tell(value ? `${name(first)} with ${name(other)}: ${times} times chance` : "", event);
  });
  canvas?.addEventListener("mouseleave", () => tell(""));

  // Where each token goes.
  const pieces = [...document.querySelectorAll(".piece")], legend = byId("legend");
  const routes = data.routes;
  let only = null;
  const firsts = (place) => {
    const own = slice ? Number(slice.value) * (routes.top_k / routes.slices) : 0;
    return pieces.map((_, token) => routes.experts[place][token * routes.top_k + own]);
  };
  const paint = () => {
    const chosen = firsts(slider.value), counts = new Map();
    chosen.forEach((expert) => counts.set(expert, (counts.get(expert) ?? 0) + 1));
    if (!counts.has(only)) only = null;
    byId("tokens").classList.toggle("only", only !== null);
    pieces.forEach((piece, token) => {
      const expert = chosen[token], framing = piece.classList.contains("framing");
      piece.className = `piece e${expert % routes.colours}${framing ? " framing" : ""}${expert === only ? " on" : ""}`;
      if (chosen[token - 1] === expert && piece.previousElementSibling) delete piece.dataset.run;
      else piece.dataset.run = expert;
    });
    legend.replaceChildren(...[...counts].sort(([a], [b]) => a - b).map(([expert, count]) => {
      const label = [made("b", name(expert)), ` ${percent(count / pieces.length)}`];
      const button = made("button", label, { class: `e${expert % routes.colours}`, "aria-pressed": expert === only });
      button.addEventListener("click", () => { only = expert === only ? null : expert; paint(); });
      return button;
    }));
  };
  const experts = (token) => {
    const at = token * routes.top_k, place = slider.value;
    return Array.from({ length: routes.top_k }, (_, n) =>
      `${name(routes.experts[place][at + n])}: ${(routes.weights[place][at + n] / 1000).toFixed(3)}`).join("\n");
  };
  for (const kind of ["mouseover", "click"]) {
    byId("tokens")?.addEventListener(kind, (event) => {
      const token = pieces.indexOf(event.target);
      tell(token < 0 ? "" : experts(token), event);
    });
  }
  byId("tokens")?.addEventListener("mouseleave", () => tell(""));
  byId("numbers")?.addEventListener("change", (event) => byId("tokens").classList.toggle("numbered", event.target.checked));

  const show = () => {
    byId("layer-name").textContent = data.numbers[slider.value];
    if (slice) byId("slice-name").textContent = slice.value;
    for (const row of byId("layers")?.tBodies[0].rows ?? []) {
      row.classList.toggle("chosen", row.cells[0].dataset.value === String(data.numbers[slider.value]));
    }
    if (table) fill();
    if (canvas) draw(data.layers[slider.value]);
    if (routes) paint();
  };
  slider.addEventListener("input", show);
  slice?.addEventListener("input", show);
  search?.addEventListener("input", fill);
  dark.addEventListener("change", show);
  byId("layers")?.tBodies[0].addEventListener("click", (event) => {
    slider.value = data.numbers.indexOf(Number(event.target.closest("tr").cells[0].dataset.value));
    show();
    slider.scrollIntoView({ behavior: "smooth", block: "start" });
  });
  show();
}
