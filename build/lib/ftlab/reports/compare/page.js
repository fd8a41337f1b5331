"use strict";
// The records of the comparison: choose a method, sort, look at what it answered beside the baseline.
const data = JSON.parse(document.getElementById("data").textContent);
const [select, containing, count, more] = ["method", "containing", "count", "more"].map(id => document.getElementById(id));
const [head, body] = [document.querySelector("#records thead tr"), document.querySelector("#records tbody")];
const STEP = 50, ROLES = { tr: "row", td: "cell" };  // on a telephone rows are no rows to the browser
let shown = STEP, sorted = { column: 1, down: false };

data.methods.forEach((name, number) => {
  if (number !== data.baseline) select.add(new Option(name, number));
});

const other = () => Number(select.value);
const difference = record => record.scores[other()] - record.scores[data.baseline];
const columns = () => [
  { name: "record", value: record => record.number },
  { name: "difference", value: difference },
  { name: data.methods[data.baseline], value: record => record.scores[data.baseline] },
  { name: data.methods[other()], value: record => record.scores[other()] },
  { name: "prompt", value: record => record.prompt },
];

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (tag in ROLES) made.setAttribute("role", ROLES[tag]);
  if (parent) parent.append(made);
  return made;
}

function draw() {
  const all = columns(), { column, down } = sorted, word = containing.value.toLowerCase();
  head.replaceChildren(...all.map((each, number) => {
    const cell = element("th");
    cell.scope = "col";
    cell.setAttribute("role", "columnheader");
    cell.setAttribute("aria-sort", number !== column ? "none" : down ? "descending" : "ascending");
    const button = element("button", each.name, cell);
    button.type = "button";
    button.addEventListener("click", () => {
      sorted = { column: number, down: number === sorted.column && !sorted.down };
      draw();
      head.children[number].firstChild.focus();
    });
    return cell;
  }));
  const found = data.records.filter(record =>
    !word || [record.prompt, ...record.references, ...record.answers].some(text => text.toLowerCase().includes(word)));
  const value = all[column].value;
  found.sort((one, two) => {
    const [a, b] = [value(one), value(two)];
    return (a < b ? -1 : a > b ? 1 : one.number - two.number) * (down ? -1 : 1);
  });
  body.replaceChildren(...found.slice(0, shown).map(row));
  count.textContent = `${Math.min(shown, found.length)} of ${found.length} records`;
  more.hidden = shown >= found.length;
}

function row(record) {
  const line = element("tr");
  const first = element("th", record.number, line);
  first.scope = "row";
  first.setAttribute("role", "rowheader");
  const apart = difference(record);
  element("td", (apart > 0 ? "+" : "") + apart.toFixed(2), line);
  element("td", record.scores[data.baseline].toFixed(2), line);
  element("td", record.scores[other()].toFixed(2), line);
  const texts = element("details", undefined, element("td", undefined, line));
  const short = record.prompt.length > 120 ? record.prompt.slice(0, 120) + "…" : record.prompt;
  element("summary", short, texts);
  const beside = element("div", undefined, texts);
  beside.className = "beside";
  const parts = [
    ["prompt", record.prompt],
    [record.references.length > 1 ? "references" : "reference", record.references.join("\n")],
    [data.methods[data.baseline], record.answers[data.baseline]],
    [data.methods[other()], record.answers[other()]],
  ];
  for (const [name, text] of parts) {
    const part = element("div", undefined, beside);
    element("h3", name, part);
    element("p", text, part);
  }
  return line;
}

select.addEventListener("change", draw);
containing.addEventListener("input", () => { shown = STEP; draw(); });
more.addEventListener("click", () => { shown += STEP; draw(); });
document.getElementById("choice").addEventListener("submit", event => event.preventDefault());
draw();
