// Light, dark or the system's theme; charts are drawn again after a change.
const THEMES = [["auto", "◐", "Auto"], ["light", "○", "Light"], ["dark", "●", "Dark"]];
const themeListeners = [];

function readTheme() {
  try { return localStorage.getItem("report-theme"); } catch { return null; }
}

function setTheme(name) {
  const [key, sign, text] = THEMES.find((theme) => theme[0] === name) || THEMES[0];
  document.documentElement.dataset.theme = key;
  byId("theme-sign").textContent = sign;
  byId("theme-name").textContent = text;
  byId("theme").setAttribute("aria-label", `Colors: ${key === "auto" ? "automatic" : key}`);
  try { localStorage.setItem("report-theme", key); } catch { /* forbidden for local files in some browsers */ }
  themeListeners.forEach((listener) => listener());
}

byId("theme").addEventListener("click", () => {
  const now = THEMES.findIndex((theme) => theme[0] === document.documentElement.dataset.theme);
  setTheme(THEMES[(now + 1) % THEMES.length][0]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  themeListeners.forEach((listener) => listener()));
setTheme(readTheme() || "auto");

const cssColor = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const runColor = (run) => cssColor(`--s${run % 8}`);
