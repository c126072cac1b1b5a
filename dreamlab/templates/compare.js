"use strict";
// Sorts and filters the table of runs, and shows one prompt and seed of the contact sheet. Words of a run go into the
// page as text, never as HTML.
(() => {
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const data = JSON.parse(document.getElementById("data").textContent);

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const isNumber = (text) => text !== "" && Number.isFinite(Number(text));

  const sortBy = (column, descending) => {
    const sign = descending ? -1 : 1;
    rows.sort((one, other) => {
      const [a, b] = [valueOf(one, column), valueOf(other, column)];
      if (a === "" || b === "") return (a === "") - (b === ""); // what is unknown goes last, either way
      const order = isNumber(a) && isNumber(b) ? a - b : isNumber(a) !== isNumber(b) ? (isNumber(a) ? -1 : 1) : a.localeCompare(b);
      return sign * order;
    });
    body.append(...rows);
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  heads.forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => sortBy(column, head.getAttribute("aria-sort") === "ascending")));

  // "lr<=1e-5" compares a column; a key may be given by its last part: dino for eval/dino
  const columnOf = (name) => {
    const keys = heads.map((head) => head.dataset.key.toLowerCase());
    const whole = keys.indexOf(name);
    return whole >= 0 ? whole : keys.findIndex((key) => key.split(/[./]/).pop() === name);
  };
  const compare = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b };
  const conditionOf = (term) => {
    const [, name, sign, wanted] = term.match(/^([\w./-]+?)(<=|>=|<|>|=)(.+)$/) ?? [];
    const column = name ? columnOf(name) : -1;
    if (column < 0) return (row) => row.textContent.toLowerCase().includes(term);
    return (row) => {
      const value = valueOf(row, column).toLowerCase();
      const both = isNumber(value) && isNumber(wanted);
      if (sign === "=") return both ? Number(value) === Number(wanted) : value === wanted;
      return both && compare[sign](Number(value), Number(wanted));
    };
  };

  let shown = new Set(rows.map((row) => row.dataset.number));
  const filter = document.getElementById("filter");
  const applyFilter = () => {
    const conditions = filter.value.toLowerCase().split(/\s+/).filter(Boolean).map(conditionOf);
    rows.forEach((row) => { row.hidden = !conditions.every((holds) => holds(row)); });
    shown = new Set(rows.filter((row) => !row.hidden).map((row) => row.dataset.number));
    document.getElementById("count").textContent = `${shown.size} of ${rows.length} runs`;
    document.querySelectorAll('svg g[id*="-curve-"], svg g[id*="-point-run-"]').forEach((mark) => {
      mark.style.display = shown.has(mark.id.split("-").pop()) ? "" : "none";
    });
    drawSheet();
  };
  filter.addEventListener("input", applyFilter);

  // A point of the chart says which run it is
  document.querySelectorAll("svg a").forEach((link) => {
    const row = document.getElementById((link.getAttribute("href") ?? link.getAttribute("xlink:href") ?? "").slice(1));
    if (!row) return;
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = row.cells[0].textContent.trim();
    link.prepend(title);
  });

  const make = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  const prompt = document.getElementById("prompt");
  const seed = document.getElementById("seed");
  const sheet = document.querySelector(".sheet");

  const fill = (select, values) => {
    const before = select.value;
    select.replaceChildren(...values.map((value) => Object.assign(make("option", value), { value })));
    if (values.includes(before)) select.value = before;
  };
  const pictureOf = (place, alt) => {
    if (place === undefined || place < 0) return Object.assign(make("span", "–"), { className: "absent" });
    return Object.assign(document.createElement("img"), { loading: "lazy", alt, src: data.pictures[place] });
  };
  const drawRow = (row, shot) => {
    const line = document.createElement("tr");
    const head = Object.assign(make("th", row.label), { scope: "row" });
    const links = row.members.flatMap((number) => [" ", Object.assign(make("a", `#${number}`), { href: `#run-${number}` })]);
    const names = make("small", "");
    names.append(...links);
    head.append(document.createElement("br"), names);
    line.append(head, ...data.updates.map((update) => {
      const cell = document.createElement("td");
      cell.append(pictureOf(row.cells[update]?.[shot], `${row.label}, update ${update}`));
      return cell;
    }));
    return line;
  };
  function drawSheet() {
    if (!sheet) return;
    const shot = data.shots.findIndex((one) => one.prompt === prompt.value && one.seed === seed.value);
    const visible = data.rows.filter((row) => row.members.some((number) => shown.has(String(number))));
    sheet.tBodies[0].replaceChildren(...visible.map((row) => drawRow(row, shot)));
  }
  if (sheet) {
    const line = document.createElement("tr");
    line.append(make("th", ""), ...data.updates.map((update) => make("th", update === 0 ? "untouched" : `update ${update}`)));
    sheet.tHead.append(line);
    fill(prompt, [...new Set(data.shots.map((shot) => shot.prompt))]);
    const fillSeeds = () => fill(seed, data.shots.filter((shot) => shot.prompt === prompt.value).map((shot) => shot.seed));
    fillSeeds();
    prompt.addEventListener("change", () => { fillSeeds(); drawSheet(); });
    seed.addEventListener("change", drawSheet);
    drawSheet();
  }
})();
