// The page: a form, the translations of all runs, and the explorer of one of them.
// `asked` is the latest request: answers to earlier ones are dropped.
const page = { runs: [], languages: ["", ""], asked: null, run: 0 };

async function send(path, values) {
  let response, answer;
  try {
    response = await fetch(path, values && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values) });
    answer = await response.json();
  } catch {
    throw new Error("The server does not answer.");
  }
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function showFailure(error) {
  byId("failure").textContent = error ? error.message[0].toUpperCase() + error.message.slice(1) : "";
  byId("failure").hidden = !error;
}

// Run a function of the latest request; its answer or its failure is shown.
async function ask(place, path, values, show) {
  const { asked } = page;
  place.setAttribute("aria-busy", "true");
  try {
    const answer = await send(path, values);
    if (asked === page.asked) show(answer);
  } catch (error) {
    if (asked === page.asked) showFailure(error);
    return false;
  } finally {
    if (asked === page.asked) place.removeAttribute("aria-busy");
  }
  return asked === page.asked;
}

function readForm() {
  const number = (id) => byId(id).value === "" ? undefined : Number(byId(id).value);
  const search = { text: byId("text").value, beam: number("beam-size"), lenpen: number("lenpen") };
  return {
    translate: { ...search, nbest: Math.min(number("nbest"), search.beam) },
    explore: { ...search, epsilon: number("epsilon"), reference: byId("reference").value.trim() || undefined },
  };
}

function buildAnswer(translation, number, translations) {
  const [best, ...others] = translation.hypotheses, language = page.languages[1];
  const { reference } = page.asked.explore;
  // The first run is compared with the second, all others with the first.
  const other = translations[number ? 0 : 1]?.hypotheses[0].text ?? reference ?? best.text;
  const details = (hypothesis) => `score ${fixed(hypothesis.score, 3)} · ${hypothesis.length} subwords`;
  return h("article", { class: "answer", "data-run": translation.run },
    h("h3", {}, dot(number), translation.run),
    h("p", { class: "best", lang: language, dir: "auto" }, markDifferences(best.text, other, reference)),
    h("p", { class: "score" }, details(best)),
    others.length > 0 && h("ol", { start: 2, "aria-label": "Other translations" }, others.map((each) =>
      h("li", { lang: language }, each.text, " ", h("span", { lang: "en" }, details(each))))));
}

function showTranslations({ translations }) {
  const { reference } = page.asked.explore, hasOther = translations.length > 1;
  const marks = [hasOther && "Underlined words differ.", hasOther && reference && "Green words are also in the reference.",
    !hasOther && reference && "Underlined words are not in the reference."].filter(Boolean).join(" ");
  byId("translations-note").textContent = `Beam ${page.asked.translate.beam}. A score is the log-probability in nats, divided by the length to the power of the length penalty. ${marks}`;
  byId("answers").replaceChildren(...translations.map(buildAnswer));
}

function chooseSystem() {
  if (page.runs.length < 2) return;
  byId("system").replaceChildren(segments("Run", page.runs.map((run, number) => [dot(number), run.label]), page.run, (run) => {
    page.run = run;
    if (page.asked) explore();
  }));
}

function explore() {
  const run = page.runs[page.run], { explore: values } = page.asked, own = page.asked;
  return ask(byId("search"), "explore", { ...values, run: run.label }, ({ search }) => {
    if (page.runs[page.run] !== run || page.asked !== own) return;
    const epsilon = values.epsilon === undefined ? "that of the run" : "the one that you chose";
    byId("beam-note").textContent = `The search of ${run.label}, step by step, with beam ${search.beam}. The middle ε is ${epsilon}.` +
      (search.gold ? "" : " Type a reference to see where it leaves the beam.");
    showSearch(byId("search"), search, { before: [buildPair(values.text, values.reference, page.languages)], language: page.languages[1] });
  });
}

async function submit(event) {
  event.preventDefault();
  page.asked = readForm();
  showFailure(null);
  byId("submit").disabled = true;
  const isShown = await ask(byId("answers"), "translate", page.asked.translate, showTranslations);
  byId("submit").disabled = false;
  if (isShown) await explore();
}

async function start() {
  const { runs, languages, max_text: maxText, max_beam: maxBeam } = await send("runs");
  Object.assign(page, { runs, languages, run: runs.length - 1 });
  byId("eyebrow").textContent = `${languages[0]} → ${languages[1]} · ${runs.map((run) => run.label).join(", ")}`;
  for (const id of ["text", "reference"]) byId(id).maxLength = maxText;
  for (const id of ["beam-size", "nbest"]) byId(id).max = maxBeam;
  byId("text").lang = languages[0];
  byId("reference").lang = languages[1];
  byId("form").addEventListener("submit", submit);
  byId("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("form").requestSubmit();
  });
  chooseSystem();
  document.documentElement.dataset.ready = "true";
}

start().catch(showFailure);
