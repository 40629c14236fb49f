// Selecting, searching, sorting, and the 3D pictures. The page reads well without any of it.
(() => {
  "use strict";
  const { records, gallery } = JSON.parse(document.getElementById("payload").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);

  // ---- selection: a point, a line and a picture of one structure belong together
  function select(number) {
    const record = records[number];
    for (const element of all(".selected")) element.classList.remove("selected");
    for (const element of all(`[data-record="${number}"]`)) {
      element.classList.add("selected");
      if (element.tagName === "circle") element.parentNode.append(element); // drawn last, so on top
    }
    const picture = gallery.findIndex((g) => g.name === record.name);
    if (picture >= 0) document.querySelector(`[data-picture="${picture}"]`).classList.add("selected");
    showFacts(record, picture);
  }

  function showFacts(record, picture) {
    const box = document.getElementById("facts");
    if (!box) return;
    const facts = make("dl");
    if (record.place) facts.append(make("dt", "Place"), make("dd", record.place));
    for (const [what, value] of record.facts) facts.append(make("dt", what), make("dd", value));
    box.replaceChildren(make("h3", record.name), facts);
    if (picture >= 0) {
      const link = make("a", "Show in 3D", { href: "#structures" });
      link.addEventListener("click", (event) => {
        event.preventDefault();
        document.querySelector(`[data-picture="${picture}"]`).scrollIntoView({ block: "center" });
      });
      box.append(link);
    }
  }

  document.addEventListener("click", (event) => {
    const element = event.target.closest("[data-record]");
    if (element) select(Number(element.dataset.record));
    const stage = event.target.closest(".stage");
    for (const other of all(".stage")) other.classList.toggle("active", other === stage);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("tr[data-record]")) select(Number(event.target.dataset.record));
  });

  // ---- the ranking: search and sort
  const lines = document.getElementById("lines");
  if (lines) {
    const body = lines.tBodies[0];
    const rows = [...body.rows];
    const search = document.getElementById("search");
    const found = document.getElementById("found");
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        count += !row.hidden;
      }
      found.textContent = words.length ? `${count} of ${rows.length} lines` : "";
    });
    const heads = all("th", lines);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const isNumber = head.classList.contains("n");
      const key = (row) => row.cells[column].dataset.key;
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what is missing stays at the end
        return (up ? 1 : -1) * (isNumber ? x - y : x.localeCompare(y, "en", { numeric: true }));
      });
      body.append(...rows);
    }));
  }

  // ---- 3D pictures: made when they come into view, given back when they leave it, since WebGL contexts are few
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Atoms for the viewer: `cells` cells along each vector, and beyond their faces one atom for every bond that is cut.
  function atomsOf({ elements, positions, cell, bonds }, cells) {
    const atoms = [];
    const numbers = new Map();
    const place = (i, a, b, c) => {
      const key = `${i},${a},${b},${c}`;
      if (!numbers.has(key)) {
        const [x, y, z] = [0, 1, 2].map((k) => positions[i][k] + a * cell[0][k] + b * cell[1][k] + c * cell[2][k]);
        numbers.set(key, atoms.length);
        atoms.push({ elem: elements[i], x, y, z, bonds: [], bondOrder: [], hetflag: true, serial: atoms.length });
      }
      return numbers.get(key);
    };
    const range = [...Array(cells).keys()];
    const corners = range.flatMap((a) => range.flatMap((b) => range.map((c) => [a, b, c])));
    const inside = (a, b, c) => [a, b, c].every((n) => n >= 0 && n < cells);
    for (const [a, b, c] of corners) elements.forEach((_, i) => place(i, a, b, c));
    const join = (from, to) => {
      atoms[from].bonds.push(to); atoms[from].bondOrder.push(1);
      atoms[to].bonds.push(from); atoms[to].bondOrder.push(1);
    };
    for (const [a, b, c] of corners) {
      for (const [i, j, u, v, w] of bonds) {
        join(place(i, a, b, c), place(j, a + u, b + v, c + w));
        if (!inside(a - u, b - v, c - w)) join(place(j, a, b, c), place(i, a - u, b - v, c - w));
      }
    }
    return atoms;
  }

  function addBox(viewer, cell, color) {
    const corner = (a, b, c) => {
      const [x, y, z] = [0, 1, 2].map((k) => a * cell[0][k] + b * cell[1][k] + c * cell[2][k]);
      return { x, y, z };
    };
    for (const s of [0, 1]) for (const t of [0, 1]) {
      for (const [start, end] of [[[0, s, t], [1, s, t]], [[s, 0, t], [s, 1, t]], [[s, t, 0], [s, t, 1]]]) {
        viewer.addCylinder({ start: corner(...start), end: corner(...end), radius: 0.05, color, fromCap: 1, toCap: 1 });
      }
    }
  }

  class Picture {
    constructor(card) {
      this.card = card;
      this.stage = card.querySelector(".stage");
      this.content = gallery[Number(card.dataset.picture)];
      this.state = "after";
      this.cells = 1;
      // until it is clicked a picture lets wheel and finger scroll the page
      for (const kind of ["wheel", "touchstart", "touchmove", "touchend"]) {
        this.stage.addEventListener(kind, (event) => {
          if (!this.stage.classList.contains("active")) event.stopPropagation();
        }, { capture: true, passive: true });
      }
      for (const button of all("button", card)) button.addEventListener("click", () => this.choose(button));
      card.querySelector(".download").addEventListener("click", (event) => { event.preventDefault(); this.download(); });
    }

    choose(button) {
      if (button.dataset.state) this.state = button.dataset.state;
      if (button.dataset.cells) { this.cells = Number(button.dataset.cells); this.orientation = null; }
      for (const other of all("button", button.parentNode)) other.setAttribute("aria-pressed", String(other === button));
      if (this.viewer) { this.orientation = this.orientation && this.viewer.getView(); this.draw(); }
    }

    appear() {
      if (this.viewer) return;
      try {
        this.stage.replaceChildren();
        this.viewer = $3Dmol.createViewer(this.stage, { backgroundAlpha: 0, antialias: true, disableFog: true });
        if (!this.viewer) throw new Error("no WebGL");
        this.draw();
      } catch {
        this.viewer = null;
        this.stage.replaceChildren(make("p", "This browser gives no WebGL picture; the CIF shows the structure in any other program.", { className: "empty" }));
      }
    }

    draw() {
      const { view } = this.content[this.state];
      const viewer = this.viewer;
      viewer.removeAllModels();
      viewer.removeAllShapes();
      viewer.addModel().addAtoms(atomsOf(view, this.cells));
      const carbon = dark.matches ? "#9aa3ad" : "#6c747d";
      const scheme = { ...$3Dmol.elementColors.Jmol, C: carbon };
      const colorscheme = { prop: "elem", map: scheme };
      viewer.setStyle({}, { stick: { radius: 0.13, colorscheme }, sphere: { scale: 0.22, colorscheme } });
      addBox(viewer, view.cell, dark.matches ? "#cfd5da" : "#5d6672");
      viewer.setBackgroundColor(0x000000, 0);
      if (this.orientation) viewer.setView(this.orientation);
      else {
        viewer.zoomTo();
        viewer.rotate(-78, "x");
        viewer.rotate(14, "y");
        this.orientation = viewer.getView();
      }
      viewer.render();
    }

    disappear() {
      if (!this.viewer) return;
      this.orientation = this.viewer.getView();
      const still = make("img", "", { src: this.viewer.pngURI(), alt: this.content.name });
      const canvas = this.stage.querySelector("canvas");
      const context = canvas && (canvas.getContext("webgl2") || canvas.getContext("webgl"));
      this.viewer = null;
      this.stage.replaceChildren(still);
      context?.getExtension("WEBGL_lose_context")?.loseContext();
    }

    download() {
      const file = new Blob([this.content[this.state].cif], { type: "chemical/x-cif" });
      const name = `${this.content.stem}-${this.state === "after" ? "final" : "as-read"}.cif`;
      const link = make("a", "", { href: URL.createObjectURL(file), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }
  }

  const pictures = new Map(all("[data-picture]").map((card) => [card, new Picture(card)]));
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) pictures.get(target).appear();
      else pictures.get(target).disappear();
    }
  }, { rootMargin: "150px" });
  for (const card of pictures.keys()) watch.observe(card);
  dark.addEventListener("change", () => { for (const picture of pictures.values()) if (picture.viewer) picture.draw(); });
})();
