// The tree of hypotheses: a column for each number of tokens and a row for each slot.
// Below it a heat map of the memberships of all candidates of each step.
const BOX = { column: 104, row: 36, width: 86, height: 25, top: 30, left: 10, heat: 9 };

// The hypothesis in each slot of each column, and its fate.
function slotsOf(search) {
  const columns = [[{ piece: "start", parent: null, column: 0, slot: 0, score: 0, gold: search.gold !== null }]];
  search.steps.forEach((step, number) => {
    let taken = false;
    columns.push(step.held.map((held, slot) => {
      const [origin, piece, score, alone] = step.candidates[held];
      const gold = held === step.gold && !taken;
      taken ||= gold;
      return { piece, score, alone, slot, gold, column: number + 1, parent: columns[number][origin] ?? null };
    }));
  });
  search.finished.forEach((hypothesis, rank) => {
    const last = columns[hypothesis.step][hypothesis.slot];
    last.ends = { rank, score: hypothesis.score };
    for (let node = last; node; node = node.parent) {
      node.alive = true;
      if (rank === 0) node.best = true;
    }
  });
  // No hypothesis continues from the slots after the last step.
  if (columns.at(-1).every((node) => !node.alive)) columns.pop();
  return columns;
}

function pathTo(node) {
  const path = [];
  for (; node; node = node.parent) path.unshift(node);
  return path;
}
const hypothesisText = (node) => pieceText(pathTo(node).slice(1).map((each) => each.piece));

const xOf = (column) => BOX.left + column * BOX.column;
const yOf = (slot) => BOX.top + slot * BOX.row;

function drawEdge(node, parent, kind) {
  const x0 = xOf(parent.column) + BOX.width, y0 = yOf(parent.slot) + BOX.height / 2;
  const x1 = xOf(node.column), y1 = yOf(node.slot) + BOX.height / 2, bend = (x1 - x0) / 2 + 4;
  return s("path", { class: `edge ${kind}`, d: `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}` });
}

const clip = (text, most = 11) => ([...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text);

function drawNode(node, choose) {
  const kinds = ["node", node.best && "best", node.gold && "gold", !node.alive && !node.lost && "dead", node.lost && "lost"];
  const text = node.parent || node.lost ? shownPiece(node.piece) : "start";
  const mark = s("g", { class: kinds.filter(Boolean).join(" "), onclick: () => choose(node), "data-column": node.column, "data-slot": node.slot },
    s("title", {}, `${text}  ${fixed(node.score)}`),
    s("rect", { x: xOf(node.column), y: yOf(node.slot), width: BOX.width, height: BOX.height, rx: 7 }),
    s("text", { x: xOf(node.column) + BOX.width / 2, y: yOf(node.slot) + 16.5, "text-anchor": "middle" },
      clip(text)));
  if (node.ends) {
    mark.append(s("g", { class: `end ${node.ends.rank === 0 ? "first" : ""}` },
      s("circle", { cx: xOf(node.column) + BOX.width, cy: yOf(node.slot), r: 8 }),
      s("text", { x: xOf(node.column) + BOX.width, y: yOf(node.slot) + 3.6 }, String(node.ends.rank + 1))));
  }
  node.mark = mark;
  return mark;
}

// The reference where it was pruned: a node outside of the beam.
function findLostNode(search, columns) {
  const lost = search.gold?.lost ?? null;
  if (lost === null) return null;
  const step = search.steps[lost], ends = step.gold >= step.candidates.length;
  const [origin, piece, score] = ends
    ? [step.gold - step.candidates.length, "▁(end)", step.ends.find((end) => end[0] === step.gold - step.candidates.length)?.[1]]
    : step.candidates[step.gold];
  const parent = columns[lost][origin];
  return { piece, score, parent, column: lost + 1, slot: search.beam, gold: true, lost: true };
}

function drawHeatRows(search, ladder, top, chosen) {
  const marks = [];
  search.steps.forEach((step, number) => {
    step.members[ladder].slice(0, step.candidates.length).forEach((percent, rank) => {
      marks.push(s("rect", {
        class: `cell ${rank === step.gold ? "gold" : ""}`, x: xOf(number + 1), y: top + rank * BOX.heat,
        width: BOX.width, height: BOX.heat - 1, rx: 1.5, fill: `rgba(var(--heat), ${0.05 + (0.95 * percent) / 100})`,
        onclick: () => chosen(number),
      }, s("title", {}, `step ${number + 1}, candidate ${rank + 1} (${shownPiece(step.candidates[rank][1])}): ${percent} %`)));
    });
  });
  return marks;
}

// Draw the tree. `onStep` and `onNode` are called with the chosen step or node.
function drawTree(search, { ladder, onStep, onNode }) {
  const columns = slotsOf(search), lost = findLostNode(search, columns);
  const lanes = search.beam + (lost ? 1 : 0);
  const heatTop = yOf(lanes) + 22;
  const pool = Math.max(...search.steps.map((step) => step.candidates.length), 0);
  const width = xOf(search.steps.length + 1), height = heatTop + pool * BOX.heat + 12;
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Tree of hypotheses; the chosen one is described below" });
  const bands = search.steps.map((_, number) => {
    const band = s("rect", { class: "column", x: xOf(number + 1) - 8, y: 0, width: BOX.column, height, onclick: () => onStep(number) });
    svg.append(band, s("text", { class: "head", x: xOf(number + 1) + BOX.width / 2, y: 17, "text-anchor": "middle", "pointer-events": "none" }, String(number + 1)));
    return band;
  });
  const nodes = columns.flat().concat(lost ?? []);
  const rank = (node) => (node.gold ? 3 : node.best ? 2 : node.alive ? 1 : 0);
  for (const node of [...nodes].sort((a, b) => rank(a) - rank(b))) {
    if (!node.parent) continue;
    const kind = node.lost ? "gold lost" : node.gold ? "gold" : node.best ? "best" : node.alive ? "alive" : "";
    svg.append(node.edge = drawEdge(node, node.parent, kind));
  }
  svg.append(...nodes.map((node) => drawNode(node, onNode)));
  svg.append(
    s("text", { class: "faint", x: 10, y: heatTop + 8 }, "memberships"),
    s("text", { class: "faint", x: 10, y: heatTop + 22 }, "best first"),
    ...drawHeatRows(search, ladder, heatTop, onStep),
    s("line", { class: "edge-of-beam", x1: xOf(1) - 8, x2: width, y1: heatTop + search.beam * BOX.heat - 0.5, y2: heatTop + search.beam * BOX.heat - 0.5 }));
  return {
    svg, columns, lost,
    markStep(number) {
      bands.forEach((band, other) => band.classList.toggle("chosen", other === number));
    },
    markNode(chosen) {
      const path = new Set(chosen ? pathTo(chosen) : []);
      for (const node of nodes) {
        node.mark.classList.toggle("chosen", node === chosen);
        node.edge?.classList.toggle("path", path.has(node));
      }
    },
  };
}
