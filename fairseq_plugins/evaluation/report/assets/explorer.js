// The report's explorer: a choice of sentence and system above the search.
const choice = { sentence: 0, run: DATA.runs.length - 1 };

function showChosen() {
  const { sentences, searches } = DATA.explorer, sentence = sentences[choice.sentence];
  const systems = segments("System", DATA.runs.map((run, number) => [dot(number), run.label]), choice.run, (run) => { choice.run = run; showChosen(); });
  const pair = buildPair(sentence.source, sentence.reference, DATA.languages);
  showSearch(byId("search"), searches[choice.run][choice.sentence], { before: [systems, pair], language: DATA.languages[1] });
  for (const button of document.querySelectorAll(".sentences button")) {
    const isHere = Number(button.dataset.sentence) === choice.sentence;
    if (isHere) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

// Open a sentence from another section.
function explore(sentence, run) {
  choice.sentence = sentence;
  choice.run = run;
  showChosen();
  const button = document.querySelector(`.sentences button[data-sentence="${sentence}"]`);
  button.parentElement.parentElement.scrollTop = button.offsetTop - 60;
  byId("beam").scrollIntoView();
  button.focus({ preventScroll: true });
}

function showExplorer() {
  const place = byId("explorer");
  if (!DATA.explorer) {
    place.append(h("p", { class: "note" }, "This report was written without the beam explorer (--explore 0)."));
    return;
  }
  const { sentences, beam } = DATA.explorer;
  place.append(
    h("p", { class: "note" }, `The search step by step, with beam ${beam}. The ${sentences.length} sentences have the greatest changes of chrF or were drawn at random. The middle ε is that of the run.`),
    h("div", { class: "explorer" },
      h("ul", { class: "sentences", "aria-label": "Sentences" }, sentences.map((sentence, number) => h("li", {},
        h("button", { type: "button", "data-sentence": number, onclick: () => { choice.sentence = number; showChosen(); } },
          h("span", { class: "text" }, sentence.source),
          h("small", {}, `Sentence ${sentence.number + 1}`, h("span", { class: tone(sentence.change) }, signed(sentence.change, 1))))))),
      h("div", { class: "view", id: "search" })));
  // Begin with the greatest change.
  choice.sentence = sentences.reduce((best, one, i) => (Math.abs(one.change) > Math.abs(sentences[best].change) ? i : best), 0);
  showChosen();
}
