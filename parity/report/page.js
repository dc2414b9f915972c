"use strict";
/* Works on the one data block and on the HTML that is already there. Elements are made without HTML, so that no id, label
   or generated text can become one. Pictures stay text until they come near the screen. */
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const total = data.id.length;
  const scored = data.scored;
  const root = document.documentElement;
  root.classList.add("js");

  /** An element with properties, attributes (names with "-") and children; text children are text. */
  function make(tag, properties, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name.includes("-")) element.setAttribute(name, value);
      else element[name] = value;
    }
    element.append(...children);
    return element;
  }

  function draw(tag, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // Theme: auto, light, dark.
  const themes = ["auto", "light", "dark"];
  function setTheme(theme) {
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.dataset.theme = theme;
    const words = { auto: "Auto", light: "Light", dark: "Dark" }[theme];
    const sign = { auto: "◐", light: "☀", dark: "☾" }[theme];
    $("theme").replaceChildren(make("span", { "aria-hidden": "true" }, sign), " ", make("span", { className: "word" }, words),
      make("span", { className: "visually-hidden" }, " colours"));
    $("theme").dataset.now = theme;
  }
  let stored = "auto";
  try { stored = localStorage.getItem("parity-theme") || "auto"; } catch { /* files may have no storage */ }
  setTheme(themes.includes(stored) ? stored : "auto");
  $("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf($("theme").dataset.now) + 1) % themes.length];
    setTheme(next);
    try { localStorage.setItem("parity-theme", next); } catch { /* as above */ }
  });

  // Facts of an image.
  const label = (side, i) => (data.answer[side][i] < 0 ? "no answer" : data.labels[data.answer[side][i]]);
  const truth = (i) => data.labels[data.truth[i]];
  const right = (side, i) => data.answer[side][i] === data.truth[i];
  const text = (side, i) => data.texts[data.text[side][i]];
  const logprob = (side, i, k) => data.logprobs[side][i * scored + k];
  function kind(i) {
    if (data.answer[0][i] === data.answer[1][i]) return "same";
    return right(0, i) ? "lost" : right(1, i) ? "won" : "other";
  }
  const kindWords = { same: "same answer", lost: "right → wrong", won: "wrong → right", other: "wrong → other wrong" };
  function margin(side, i) {
    const own = data.truth[i] < scored ? logprob(side, i, data.truth[i]) : null;
    let best = null;
    for (let k = 0; k < scored; k++) {
      const value = logprob(side, i, k);
      if (k !== data.truth[i] && value !== null && (best === null || value > best)) best = value;
    }
    return own === null || best === null ? null : own - best;
  }
  function shares(side, i) {
    const values = Array.from({ length: scored }, (_, k) => logprob(side, i, k));
    const known = values.filter((value) => value !== null);
    const top = Math.max(...known);
    const sum = known.reduce((all, value) => all + Math.exp(value - top), 0);
    return values.map((value) => (value === null ? null : Math.exp(value - top) / sum));
  }
  function drift(i) {
    let largest = 0;
    for (let k = 0; k < scored; k++) {
      const a = logprob(0, i, k), b = logprob(1, i, k);
      if (a !== null && b !== null) largest = Math.max(largest, Math.abs(a - b));
    }
    return largest;
  }
  const short = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");

  // Pictures.
  let wholePage = document.readyState !== "loading";
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); fill(entry.target); }
  }, { rootMargin: "600px 0px" });
  const later = [];
  document.addEventListener("DOMContentLoaded", () => { wholePage = true; later.splice(0).forEach(fill); });

  function hollow(box, words) {
    box.classList.add("hollow");
    box.replaceChildren(words);
  }
  /** Put the picture of box.dataset.picture into a box, as the side box.dataset.side saw it. */
  function fill(box) {
    if (box.dataset.filled) return;
    const i = Number(box.dataset.picture), side = Number(box.dataset.side);
    const store = $("p" + i);
    if (!store) {
      if (!wholePage) later.push(box); // its text is still being read
      else { box.dataset.filled = "none"; hollow(box, "no picture in this file"); }
      return;
    }
    const saw = data.saw[side][i];
    if (saw === "o") {
      box.dataset.filled = "other";
      hollow(box, "was given other bytes than the dataset’s canvas; they were not kept");
      return;
    }
    box.dataset.filled = store.dataset.kind;
    const image = make("img", { decoding: "async", width: 256, height: 256 });
    image.alt = data.id[i] + ", as " + data.sides[side] + " saw it" + (saw === "s" ? ", red and blue swapped" : "");
    image.classList.toggle("swapped", saw === "s");
    image.classList.toggle("preview", store.dataset.kind === "preview");
    image.src = JSON.parse(store.textContent);
    box.replaceChildren(image);
  }
  const boxes = document.querySelectorAll("#flips .picture");
  for (const box of boxes) near.observe(box);
  window.addEventListener("beforeprint", () => boxes.forEach(fill));
  matchMedia("print").addEventListener("change", (event) => { if (event.matches) boxes.forEach(fill); });

  function pictureBox(i, side) {
    return make("div", { className: "picture", "data-picture": i, "data-side": side });
  }

  // The dialog: one image, with its neighbours in the list it was opened from.
  const dialog = $("detail");
  let around = [], at = 0, opener = null;
  function open(i, list, from) {
    around = list;
    at = Math.max(0, list.indexOf(i));
    opener = from;
    show();
    dialog.showModal();
    $("detail-close").focus();
  }
  function go(step) {
    const next = at + step;
    if (next < 0 || next >= around.length) return;
    at = next;
    show();
  }
  function figure(i, side) {
    const box = pictureBox(i, side);
    fill(box);
    const ok = right(side, i);
    return make("figure", { className: side ? "candidate" : "reference" }, box, make("figcaption", {},
      make("span", { className: "who" }, data.sides[side]), make("b", { className: "answer" }, label(side, i)),
      make("span", { className: ok ? "right" : "wrong" }, ok ? "✓ right" : "✗ wrong")));
  }
  function distribution(i) {
    const both = [shares(0, i), shares(1, i)];
    const rows = data.labels.slice(0, scored).map((name, k) => {
      const bars = draw("svg", { height: 18, "aria-hidden": "true" },
        draw("rect", { class: "track", width: "100%", height: 18 }),
        ...[0, 1].map((side) => draw("rect", { class: "share " + (side ? "candidate" : "reference"), y: 2 + 8 * side, height: 6,
          width: 100 * (both[side][k] || 0) + "%" })));
      const cells = [0, 1].map((side) => make("td", { className: "number " + (side ? "candidate" : "reference") + "-text" },
        both[side][k] === null ? "–" : (100 * both[side][k]).toFixed(1) + " %"));
      return make("tr", { className: k === data.truth[i] ? "truth" : "" }, make("th", { scope: "row" }, name),
        make("td", { className: "bars" }, bars), ...cells);
    });
    const head = make("thead", { className: "visually-hidden" }, make("tr", {}, ...["label", "bars", ...data.sides].map((name) => make("th", { scope: "col" }, name))));
    const columns = make("colgroup", {}, ...["c-label", "", "c-number", "c-number"].map((className) => make("col", { className })));
    return make("table", { className: "shares" }, columns, head, make("tbody", {}, ...rows));
  }
  function facts(rows) {
    return make("table", { className: "facts" }, make("tbody", {}, ...rows.map(([name, value]) =>
      make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)))));
  }
  function ladderFacts(m) {
    const equal = (value) => (value === null ? "not compared" : value ? "✓ equal" : "✗ differ");
    const number = (value, unit) => (value === null ? "not compared" : short(value) + (unit || ""));
    return facts([
      ["S0 decoded", equal(m[0])], ["S1 pixels", equal(m[1])],
      ["S2 tiles", m[2] === m[3] ? m[2] + " on both, bytes differ by " + number(m[4]) + " at most" : "✗ " + m[2] + " and " + m[3]],
      ["S3 tokens", equal(m[7]) + (m[8] === null ? "" : ", first at " + m[8])],
      ["S4 embeddings", "error " + number(m[9]) + ", cosine " + (m[10] === null ? "–" : m[10])],
      ["S5 logits", "KL " + number(m[11], " nats") + ", labels " + number(m[12], " nats") + ", largest " + number(m[14], " σ")],
      ["S5 likeliest token", equal(m[13])], ["S6 generation", equal(m[15])], ["S7 label", equal(m[16])],
    ]);
  }
  function show() {
    const i = around[at];
    $("detail-title").textContent = data.id[i];
    $("detail-prev").disabled = at === 0;
    $("detail-next").disabled = at === around.length - 1;
    const parted = data.parted[i];
    const m = data.measured && data.measured[i];
    const about = [
      ["truth", truth(i)], ["answers", kindWords[kind(i)]],
      ["diverged at", parted >= 0 ? data.rungs[parted].join(" ") : m ? "no stage" : "not known"],
      ...[0, 1].map((side) => [data.sides[side] + " wrote", "“" + text(side, i) + "”"]),
      ...[0, 1].map((side) => [data.sides[side] + " margin", margin(side, i) === null ? "–" : short(margin(side, i)) + " nats"]),
      ["key", make("code", {}, data.key[i] + "…")], ["place", at + 1 + " of " + around.length],
    ];
    const top = make("div", { className: "top" }, figure(i, 0), figure(i, 1));
    const body = [top];
    const store = $("p" + i);
    const notes = [];
    if (store && store.dataset.kind === "preview") notes.push("A preview; the whole canvas is in the dataset’s folder.");
    if (data.saw[0][i] === "c" && data.saw[1][i] === "c") notes.push("Both sides were given the same bytes.");
    if (data.saw[0][i] === "s" || data.saw[1][i] === "s") notes.push("Red and blue swapped where a side was fed B, G, R.");
    if (notes.length) body.push(make("p", { className: "hint" }, notes.join(" ")));
    const cols = make("div", { className: "cols" }, make("div", {}, make("h3", {}, "This image"), facts(about)));
    if ([0, 1].some((side) => shares(side, i).some((value) => value !== null)))
      top.append(make("div", {}, make("h3", {}, "Probability of each label"), distribution(i)));
    if (m) cols.append(make("div", {}, make("h3", {}, "The ladder"), ladderFacts(m)));
    body.push(cols);
    $("detail-body").replaceChildren(...body);
    dialog.scrollTop = 0;
  }
  $("detail-prev").addEventListener("click", () => go(-1));
  $("detail-next").addEventListener("click", () => go(1));
  $("detail-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); go(event.key === "ArrowLeft" ? -1 : 1); }
  });
  dialog.addEventListener("close", () => {
    $("detail-body").replaceChildren();
    if (opener && opener.isConnected) opener.focus();
  });

  const flipOrder = [...document.querySelectorAll("#flips .open")].map((button) => Number(button.dataset.index));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.classList.contains("open")) open(Number(button.dataset.index), flipOrder, button);
    else if (button.dataset.key) {
      const i = data.key.indexOf(button.dataset.key);
      if (i >= 0) open(i, [i], button);
    } else if (button.classList.contains("copy")) copy(button);
  });

  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    let done = true;
    try { await navigator.clipboard.writeText(code.textContent); } catch {
      const range = document.createRange(); // the text is selected, for the keyboard's own copy
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  // The list of all images.
  const PAGE = 60;
  const form = $("filters");
  for (const [k, name] of data.labels.entries()) $("f-truth").append(make("option", { value: String(k) }, name));
  const folded = data.id.map((id, i) => [id, truth(i), label(0, i), label(1, i), text(0, i), text(1, i)].join("\n").toLowerCase());
  let found = [], page = 0;
  const orders = {
    drift: () => { const d = data.id.map((_, i) => drift(i)); found.sort((a, b) => d[b] - d[a] || a - b); },
    close: () => {
      const size = (value) => (value === null ? Infinity : Math.abs(value));
      const m = data.id.map((_, i) => Math.min(size(margin(0, i)), size(margin(1, i))));
      found.sort((a, b) => m[a] - m[b] || a - b);
    },
  };
  function search() {
    const words = $("q").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = { truth: $("f-truth").value, kind: $("f-kind").value, right: $("f-right").value, parted: $("f-parted").value };
    found = [];
    for (let i = 0; i < total; i++) {
      if (wanted.truth && data.truth[i] !== Number(wanted.truth)) continue;
      if (wanted.parted && data.parted[i] !== Number(wanted.parted)) continue;
      if (wanted.right && (right(0, i) ? "1" : "0") + (right(1, i) ? "1" : "0") !== wanted.right) continue;
      if (wanted.kind && (wanted.kind === "flip" ? kind(i) === "same" : kind(i) !== wanted.kind)) continue;
      if (!words.every((word) => folded[i].includes(word))) continue;
      found.push(i);
    }
    if (orders[$("sort").value]) orders[$("sort").value]();
    page = 0;
    render();
  }
  function render() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    $("count").textContent = found.length.toLocaleString("en") + " of " + total.toLocaleString("en") + " image" + (total === 1 ? "" : "s");
    $("page").textContent = "Page " + (page + 1) + " of " + pages;
    $("prev").disabled = page === 0;
    $("next").disabled = page >= pages - 1;
    const items = found.slice(page * PAGE, page * PAGE + PAGE).map((i) => {
      const box = pictureBox(i, 1);
      near.observe(box);
      const same = kind(i) === "same";
      const said = same ? (right(0, i) ? "✓ " : "✗ ") + label(0, i) : label(0, i) + " → " + label(1, i);
      const button = make("button", { type: "button" }, box, make("span", { className: "name" }, data.id[i]),
        make("span", { className: "line" }, truth(i)), make("span", { className: same ? (right(0, i) ? "right" : "wrong") : "line" }, said));
      if (!same) button.append(make("span", {}, make("span", { className: "pill kind-" + kind(i) }, kindWords[kind(i)])));
      button.addEventListener("click", () => open(i, found, button));
      return make("li", {}, button);
    });
    $("list").replaceChildren(...items);
  }
  function turn(step) {
    page += step;
    render();
    $("images").scrollIntoView();
  }
  $("prev").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(search));
  search();

  // Margins: the nearest dot to the pointer, or by keyboard from left to right.
  const plot = $("scatter");
  if (plot) {
    const area = plot.querySelector(".area"), mark = $("scatter-mark"), words = $("scatter-text");
    const low = Number(plot.dataset.low), high = Number(plot.dataset.high);
    const points = [];
    for (let i = 0; i < total; i++) {
      const x = margin(0, i), y = margin(1, i);
      if (x !== null && y !== null) points.push({ i, x: (x - low) / (high - low), y: 1 - (y - low) / (high - low), mx: x, my: y });
    }
    points.sort((a, b) => a.x - b.x || a.i - b.i);
    const order = points.map((point) => point.i);
    let now = -1;
    const choose = (index) => {
      now = index;
      const point = points[index];
      mark.setAttribute("cx", 100 * point.x + "%");
      mark.setAttribute("cy", 100 * point.y + "%");
      words.replaceChildren(make("b", {}, data.id[point.i]), ": truth " + truth(point.i) + ", " + kindWords[kind(point.i)] + "; margins " +
        short(point.mx) + " and " + short(point.my) + " nats");
    };
    const nearest = (event) => {
      const frame = area.getBoundingClientRect();
      let best = Infinity, which = -1;
      points.forEach((point, index) => {
        const dx = point.x * frame.width - (event.clientX - frame.left), dy = point.y * frame.height - (event.clientY - frame.top);
        if (dx * dx + dy * dy < best) { best = dx * dx + dy * dy; which = index; }
      });
      return best < 40 * 40 ? which : -1;
    };
    area.setAttribute("tabindex", "0");
    area.addEventListener("pointermove", (event) => { const index = nearest(event); if (index >= 0 && index !== now) choose(index); });
    area.addEventListener("click", (event) => { const index = nearest(event); if (index >= 0) { choose(index); open(points[index].i, order, area); } });
    area.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (step) { event.preventDefault(); choose(Math.min(points.length - 1, Math.max(0, now + step))); }
      else if (event.key === "Enter" && now >= 0) { event.preventDefault(); open(points[now].i, order, area); }
    });
  }
  root.dataset.ready = String(Math.round(performance.now()));
})();
