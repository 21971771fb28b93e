// Configurations side by side, commands and versions.
function buildConfigTable() {
  const keys = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.config)))];
  const cell = (run, name) => run.config[name] ?? "–";
  const differs = (name) => new Set(DATA.runs.map((run) => cell(run, name))).size > 1;
  const ordered = [...keys.filter(differs), ...keys.filter((name) => !differs(name))];
  return h("table", {}, h("caption", { class: "hidden" }, "Configurations"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Option"), DATA.runs.map((run, number) => h("th", { scope: "col" }, dot(number), run.label)))),
    h("tbody", {}, ordered.map((name) => h("tr", { class: differs(name) && DATA.runs.length > 1 ? "differs" : null },
      h("th", { scope: "row", class: "mono" }, name), DATA.runs.map((run) => h("td", { class: "mono" }, cell(run, name)))))));
}

function copyButton(text) {
  return h("button", {
    type: "button", class: "quiet small",
    onclick: async (event) => {
      const button = event.currentTarget;
      try { await navigator.clipboard.writeText(text); button.textContent = "copied"; } catch { button.textContent = "select and copy"; }
    },
  }, "copy");
}

function showReproduction() {
  const commands = DATA.runs.map((run, number) => [
    h("h3", {}, h("span", {}, dot(number), run.path), run.command && copyButton(run.command)),
    h("p", { class: "note small" }, `${run.checkpoint}${run.checkpoint_sha256 ? `, sha256 ${run.checkpoint_sha256.slice(0, 16)}…` : ""}`),
    run.command ? h("pre", {}, run.command) : h("p", { class: "note" }, "The command was not recorded."),
  ]);
  byId("reproduction-content").append(
    h("p", { class: "note" }, "Options that differ between the runs come first."),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Configurations" }, buildConfigTable()),
    h("details", { open: DATA.runs.length <= 3 }, h("summary", {}, "Training commands"), commands),
    h("h3", {}, h("span", {}, "This report"), DATA.command && copyButton(DATA.command)),
    ...(DATA.command ? [h("pre", {}, DATA.command)] : []),
    h("p", { class: "note small" }, `Written ${DATA.made.replace("T", " ")} with ${Object.entries(DATA.versions).map(([name, version]) => `${name} ${version}`).join(", ")}; charts by Chart.js (MIT).`));
}
