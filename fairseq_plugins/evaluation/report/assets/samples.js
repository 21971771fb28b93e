// Translations of two systems side by side; words that differ are marked.
const PAGE = 12;
const view = {
  left: 0, right: DATA.runs.length - 1, order: "either", words: "", marks: "systems", count: PAGE,
  metric: "chrf",
};
const ORDERS = [
  ["either", "greatest change"], ["gain", "greatest gain"], ["loss", "greatest loss"],
  ["low", "lowest score"], ["long", "longest source"], ["corpus", "order of the test set"],
];

function changeOf(sentence) {
  return sentence[view.metric][view.right] - sentence[view.metric][view.left];
}

function selectSamples() {
  const needle = view.words.trim().toLocaleLowerCase();
  const found = DATA.samples.sentences.filter((sentence) => !needle ||
    [sentence.source, sentence.reference, sentence.hypotheses[view.left], sentence.hypotheses[view.right]]
      .some((text) => text.toLocaleLowerCase().includes(needle)));
  const keys = {
    either: (x) => -Math.abs(changeOf(x)), gain: (x) => -changeOf(x), loss: changeOf,
    low: (x) => x[view.metric][view.right], long: (x) => -x.source.length, corpus: (x) => x.number,
  };
  const key = keys[view.order];
  return found.sort((one, other) => key(one) - key(other) || one.number - other.number);
}

function buildSample(sentence) {
  const change = changeOf(sentence);
  const text = (kind, title, body, score, lang) => h("div", { class: kind },
    h("h4", {}, title, score && h("span", { class: "score" }, score)), h("p", { lang, dir: "auto" }, body));
  const system = (run, other) => text("system", [dot(run), nameOf(run)],
    markDifferences(sentence.hypotheses[run], view.marks === "systems" ? sentence.hypotheses[other] : sentence.reference, sentence.reference),
    `BLEU ${fixed(sentence.bleu[run], 1)} · chrF ${fixed(sentence.chrf[run], 1)}`, DATA.languages[1]);
  const inExplorer = DATA.explorer?.sentences.findIndex((one) => one.number === sentence.number) ?? -1;
  return h("article", { class: "sample", "data-change": change.toFixed(1), "data-number": sentence.number },
    h("header", {},
      h("span", {}, `Sentence ${grouped(sentence.number + 1)}`),
      h("span", {},
        inExplorer >= 0 && h("button", { type: "button", class: "link", onclick: () => explore(inExplorer, view.right) }, "explore the beam"),
        " ", h("span", { class: `pill ${tone(Math.round(10 * change))}` }, `${signed(change, 1)} ${view.metric === "bleu" ? "BLEU" : "chrF"}`))),
    h("div", { class: "texts" },
      text("source", `Source, ${DATA.languages[0]}`, sentence.source, null, DATA.languages[0]),
      text("reference", "Reference", sentence.reference, null, DATA.languages[1]),
      system(view.left, view.right), view.left !== view.right && system(view.right, view.left)));
}

function showSamples() {
  const found = selectSamples();
  byId("samples").replaceChildren(...found.slice(0, view.count).map(buildSample));
  byId("sample-count").textContent = `${grouped(Math.min(view.count, found.length))} of ${grouped(found.length)} shown`;
  byId("more-samples").hidden = found.length <= view.count;
}

function showTranslations() {
  const { sentences, total, beam } = DATA.samples;
  byId("translations-note").textContent = (sentences.length < total
    ? `${grouped(sentences.length)} of ${grouped(total)} sentences of ${DATA.tests[DATA.shown].title}, beam ${beam}: the greatest gains and losses and a random sample of the others. `
    : `All ${grouped(total)} sentences of ${DATA.tests[DATA.shown].title}, beam ${beam}. `) +
    "Underlined words differ; green words are also in the reference.";
  const set = (name) => (value) => { view[name] = value; view.count = PAGE; showSamples(); };
  const systems = DATA.runs.map((run, number) => [String(number), run.label]);
  const search = h("input", { type: "search", placeholder: "any word", oninput: (event) => set("words")(event.target.value) });
  const form = byId("sample-controls");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(
    dropDown("Left", systems, String(view.left), (value) => set("left")(Number(value))),
    dropDown("Right", systems, String(view.right), (value) => set("right")(Number(value))),
    dropDown("Sorted by", ORDERS, view.order, set("order")),
    dropDown("Score", [["chrf", "chrF"], ["bleu", "BLEU"]], view.metric, set("metric")),
    dropDown("Differences", [["systems", "between both systems"], ["reference", "from the reference"]], view.marks, set("marks")),
    h("label", {}, "Search", search));
  byId("more-samples").addEventListener("click", () => { view.count += PAGE; showSamples(); });
  showSamples();
}
