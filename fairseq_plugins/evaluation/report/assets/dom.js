// Helpers for elements and numbers. Text becomes text nodes, never markup.
const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "color") element.style.setProperty("--color", value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}
const h = (tag, properties, ...children) =>
  fill(document.createElement(tag), properties, children);
const s = (tag, properties, ...children) =>
  fill(document.createElementNS(SVG, tag), properties, children);
const byId = (id) => document.getElementById(id);

const fixed = (value, digits = 2) =>
  Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "–";
const signed = (value, digits = 2) =>
  !Number.isFinite(value) ? "–" : (value > 0 ? "+" : "") + fixed(value, digits);
const grouped = (value) => Number.isFinite(value) ? value.toLocaleString("en") : "–";
const pValue = (p) => !Number.isFinite(p) ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3);
const tone = (value) => (value > 0 ? "good" : value < 0 ? "bad" : "");
const pieceText = (pieces) => pieces.join("").replaceAll("▁", " ").trim();
const shownPiece = (piece) => piece.startsWith("▁") ? piece.slice(1) || "␣" : "·" + piece;
const colorOf = (run) => `var(--s${run % 8})`;
const dot = (run) => h("span", { class: "dot", color: colorOf(run), "aria-hidden": "true" });

// A row of buttons, one of them chosen; `choose` gets its number.
function segments(label, options, chosen, choose) {
  const group = h("div", { class: "segments", role: "group", "aria-label": label });
  options.forEach((option, number) => {
    group.append(h("button", {
      type: "button", "aria-pressed": String(number === chosen),
      onclick: (event) => {
        for (const other of group.children) other.setAttribute("aria-pressed", "false");
        event.currentTarget.setAttribute("aria-pressed", "true");
        choose(number);
      },
    }, option));
  });
  return group;
}

function dropDown(label, options, chosen, choose) {
  const select = h("select", { onchange: () => choose(select.value) },
    options.map(([value, text]) =>
      h("option", { value, selected: value === chosen }, text)));
  return h("label", {}, label, select);
}

// A table that its headings sort. Columns: {title, value, show}.
function buildSortableTable(columns, rows, { caption, rowClass, sort, descending }) {
  const state = { column: sort ?? null, descending: descending ?? true };
  const head = h("tr"), body = h("tbody");
  const showRows = () => {
    const order = [...rows];
    if (state.column !== null) {
      const { value } = columns[state.column];
      order.sort((a, b) => compareValues(value(a), value(b), state.descending));
    }
    body.replaceChildren(...order.map((row) =>
      h("tr", { class: rowClass && rowClass(row) },
        columns.map((column) => h("td", {}, column.show(row))))));
    [...head.children].forEach((cell, number) => {
      if (number !== state.column) cell.removeAttribute("aria-sort");
      else cell.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    });
  };
  columns.forEach((column, number) => {
    head.append(h("th", { scope: "col" }, h("button", {
      type: "button",
      onclick: () => {
        const again = state.column === number;
        state.descending = again ? !state.descending : typeof column.value(rows[0]) !== "string";
        state.column = number;
        showRows();
      },
    }, column.title)));
  });
  showRows();
  return h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, head), body);
}

// Missing values come last in both directions.
function compareValues(one, other, descending) {
  const missing = (value) => value === undefined || value === null || Number.isNaN(value);
  if (missing(one) || missing(other)) return missing(one) - missing(other);
  const order = typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other;
  return descending ? -order : order;
}
