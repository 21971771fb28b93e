// The data of the report.
const DATA = JSON.parse(byId("data").textContent);
const nameOf = (run) => DATA.runs[run].label;
