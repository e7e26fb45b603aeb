"use strict";
// One list of scans, one view of it (filtered, sorted), cards made only as far as one has scrolled.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const scans = data.scans;
  const flagOf = new Map(data.flags.map((flag) => [flag.code, flag]));
  const KEY = "spineps-ratings:" + data.id;
  const STEP = 120; // cards made at once
  const VALUE = { bad: 0, unsure: 1, good: 2 };
  const COLUMNS = ["scan", "participant_id", "session_id", "rating", "note", "rated_at", "status", "flags"];
  const cards = new Map();
  const chosen = new Set(); // flags that are filtered by
  let ratings = {};
  let view = [];
  let made = 0;
  let current = -1;
  let stored = true;

  // --- what is remembered -------------------------------------------------------------------------------------------
  function load() {
    try {
      ratings = JSON.parse(localStorage.getItem(KEY) || "{}");
    } catch (error) {
      stored = false; // private windows and strict settings forbid it
      tell("This browser does not let the page remember ratings: export them before you close it.");
    }
  }

  function save() {
    if (!stored) return;
    try {
      localStorage.setItem(KEY, JSON.stringify(ratings));
    } catch (error) {
      stored = false;
      tell("Ratings can no longer be remembered (" + error.name + "): export them before you close the page.");
    }
  }

  function change(scan, more) {
    const now = { rating: "", note: "", ...ratings[scan.scan], ...more, time: new Date().toISOString().slice(0, 19) + "Z" };
    if (now.rating || now.note) ratings[scan.scan] = now;
    else delete ratings[scan.scan];
    save();
    dress(scan);
    count();
  }

  const ratingOf = (scan) => ratings[scan.scan]?.rating || "";
  const noteOf = (scan) => ratings[scan.scan]?.note || "";

  // --- cards --------------------------------------------------------------------------------------------------------
  const name = (scan) => scan.scan.split("/").pop().replace(/\.nii(\.gz)?$/, "");

  function facts(scan) {
    if (!scan.count) return scan.status === "done" ? "no vertebra" : scan.status;
    const parts = [scan.count + " vertebrae, " + scan.first + "–" + scan.last];
    if (scan.confidence !== null) parts.push("least sure name " + Math.round(scan.confidence * 100) + " %");
    return parts.join(" · ");
  }

  function chip(code, tag) {
    const flag = flagOf.get(code);
    const element = document.createElement(tag);
    element.className = "chip";
    element.dataset.severity = flag.severity;
    element.textContent = flag.title;
    element.title = flag.rule;
    return element;
  }

  function card(scan) {
    let item = cards.get(scan);
    if (item) return item;
    item = $("card").content.firstElementChild.cloneNode(true);
    item.scan = scan;
    const picture = item.querySelector(".picture");
    if (scan.thumb) {
      const image = picture.firstElementChild;
      image.src = scan.thumb;
      image.alt = "Sagittal cuts of " + name(scan);
      picture.setAttribute("aria-label", "Whole picture of " + name(scan));
    } else {
      picture.classList.add("none");
      picture.disabled = true;
      picture.textContent = "no picture";
    }
    item.querySelector("h2").textContent = name(scan);
    item.querySelector("h2").title = scan.scan;
    item.querySelector(".facts").textContent = facts(scan);
    if (scan.report) {
      const link = document.createElement("a");
      link.href = "../" + scan.report.split("/").map(encodeURIComponent).join("/");
      link.textContent = "report";
      link.target = "_blank";
      item.querySelector(".facts").append(" · ", link);
    }
    const odd = scan.odd.length ? "Odd volume: " + scan.odd.join(", ") + ". " : "";
    const message = item.querySelector(".message");
    message.textContent = message.title = odd + scan.message;
    item.querySelector(".chips").append(...scan.flags.map((code) => chip(code, "span")));
    cards.set(scan, item);
    dress(scan);
    return item;
  }

  function dress(scan) {
    const item = cards.get(scan);
    if (!item) return;
    for (const button of item.querySelectorAll("[data-rating]")) {
      button.setAttribute("aria-pressed", button.dataset.rating === ratingOf(scan));
    }
    const note = item.querySelector(".note");
    if (note !== document.activeElement) note.value = noteOf(scan);
    if ($("viewer").open && view[current] === scan) $("verdict").textContent = ratingOf(scan);
  }

  // --- the view -----------------------------------------------------------------------------------------------------
  const collator = new Intl.Collator("en", { numeric: true });
  const order = new Map([...scans].sort((a, b) => collator.compare(a.scan, b.scan)).map((scan, k) => [scan, k]));
  const worst = (scan) => scan.flags.reduce((sum, code) => sum + 10 ** (flagOf.get(code).severity * 2), 0);
  const sorters = {
    name: (scan) => order.get(scan),
    flags: (scan) => -worst(scan),
    confidence: (scan) => scan.confidence ?? 2,
    count: (scan) => scan.count,
    rating: (scan) => VALUE[ratingOf(scan)] ?? 3,
  };

  function matches(scan, text) {
    const status = $("status").value;
    const wanted = $("rating").value;
    const rating = ratingOf(scan);
    if (status && scan.status !== status) return false;
    if (wanted === "none" ? rating : wanted === "any" ? !rating : wanted && rating !== wanted) return false;
    for (const code of chosen) if (!scan.flags.includes(code)) return false;
    return !text || (scan.scan + " " + noteOf(scan) + " " + scan.message).toLowerCase().includes(text);
  }

  function refresh() {
    const before = view[current];
    const text = $("text").value.trim().toLowerCase();
    const key = sorters[$("sort").value];
    const sign = $("direction").getAttribute("aria-pressed") === "true" ? -1 : 1;
    view = scans.filter((scan) => matches(scan, text));
    const keys = new Map(view.map((scan) => [scan, key(scan)]));
    view.sort((a, b) => sign * (keys.get(a) - keys.get(b)) || order.get(a) - order.get(b));
    $("scans").replaceChildren();
    made = 0;
    if (before) cards.get(before)?.removeAttribute("aria-current");
    current = -1;
    more();
    const place = view.indexOf(before);
    if (place >= 0 && place < made) select(place, false);
    $("shown").textContent = view.length === scans.length ? "" : view.length + " of " + scans.length + " scans";
    count();
  }

  function more(least = 0) {
    const end = Math.min(view.length, Math.max(made + STEP, least));
    const part = document.createDocumentFragment();
    for (; made < end; made++) {
      const item = card(view[made]);
      item.setAttribute("aria-posinset", made + 1);
      item.setAttribute("aria-setsize", view.length);
      part.append(item);
    }
    $("scans").append(part);
  }

  function count() {
    const done = scans.filter((scan) => ratingOf(scan)).length;
    $("rated").textContent = done + " of " + scans.length + " rated";
    $("progress").value = scans.length ? done / scans.length : 0;
  }

  function select(place, focus = true) {
    if (!view.length) return;
    if (current >= 0) card(view[current]).removeAttribute("aria-current");
    current = Math.max(0, Math.min(view.length - 1, place));
    if (current >= made) more(current + 1);
    const item = card(view[current]);
    item.setAttribute("aria-current", "true");
    if (!focus) return;
    item.focus({ preventScroll: true });
    item.scrollIntoView({ block: "nearest" });
    if ($("viewer").open) show();
  }

  const perRow = () => getComputedStyle($("scans")).gridTemplateColumns.split(" ").length;

  function rate(scan, rating, advance) {
    change(scan, { rating: rating === ratingOf(scan) && !advance ? "" : rating });
    if (advance && rating && $("advance").checked) select(current + 1);
  }

  // --- whole picture, help, notices ---------------------------------------------------------------------------------
  function show() {
    const scan = view[current];
    if (!scan || !scan.thumb) return;
    $("viewed").textContent = name(scan);
    $("verdict").textContent = ratingOf(scan);
    const large = $("large");
    large.onerror = () => {
      large.onerror = null;
      large.src = scan.thumb; // the page was taken away without the results
    };
    large.alt = "Picture of " + name(scan);
    large.src = "../" + scan.picture.split("/").map(encodeURIComponent).join("/");
    if (!$("viewer").open) $("viewer").showModal();
  }

  function tell(text) {
    $("notice").textContent = text;
    $("notice").hidden = !text;
  }

  // --- export and import --------------------------------------------------------------------------------------------
  const cell = (text) => String(text ?? "").replace(/\s+/g, " ").trim() || "n/a";

  function table() {
    const known = new Map(scans.map((scan) => [scan.scan, scan]));
    const rows = Object.keys(ratings).sort(collator.compare).map((path) => {
      const { rating, note, time } = ratings[path];
      const scan = known.get(path) || { participant: "", session: "", status: "", flags: [] };
      return [path, scan.participant, scan.session, rating, note, time, scan.status, scan.flags.join(",")];
    });
    return [COLUMNS, ...rows].map((row) => row.map(cell).join("\t") + "\n").join("");
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], { type: "text/tab-separated-values" }));
    link.download = "ratings_" + data.title.replace(/[^\w-]+/g, "-") + ".tsv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function take(text) {
    const [head, ...rows] = text.replace(/^\ufeff/, "").split(/\r?\n/).filter(Boolean).map((line) => line.split("\t"));
    const column = Object.fromEntries((head || []).map((title, k) => [title, k]));
    if (column.scan === undefined || column.rating === undefined) {
      tell("This is no table of ratings: it needs the columns scan and rating.");
      return;
    }
    const value = (row, title) => (row[column[title]] ?? "n/a").replace(/^n\/a$/, "");
    let taken = 0, refused = 0;
    for (const row of rows) {
      const path = row[column.scan];
      const one = { rating: value(row, "rating"), note: value(row, "note"), time: value(row, "rated_at") };
      if ((one.rating && !(one.rating in VALUE)) || !path) refused++;
      // The later word on a scan counts, whichever side it comes from.
      else if ((one.rating || one.note) && !((ratings[path]?.time || "") > one.time)) ratings[path] = one, taken++;
    }
    save();
    scans.forEach(dress);
    refresh();
    tell(taken + " ratings imported" + (refused ? ", " + refused + " lines not understood" : "") + ".");
  }

  // --- events -------------------------------------------------------------------------------------------------------
  const moves = {
    j: () => current + 1, ArrowRight: () => current + 1, ArrowDown: () => current + perRow(),
    k: () => current - 1, ArrowLeft: () => current - 1, ArrowUp: () => current - perRow(),
    Home: () => 0, End: () => view.length - 1,
  };
  const verdicts = { 1: "good", g: "good", 2: "unsure", u: "unsure", 3: "bad", b: "bad", 0: "" };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || $("keys").open) return;
    const target = event.target;
    if (target.matches("input, select")) {
      if (event.key === "Escape" || (event.key === "Enter" && target.matches(".note, #text"))) {
        target.blur();
        select(Math.max(current, 0));
      }
      return;
    }
    const scan = view[current];
    if (event.key in moves) select(current < 0 ? (event.key === "End" ? view.length - 1 : 0) : moves[event.key]());
    else if (event.key in verdicts && scan) rate(scan, verdicts[event.key], true);
    else if (event.key === "n" && scan && !$("viewer").open) card(scan).querySelector(".note").focus();
    else if (event.key === "Enter" && scan && !target.matches("button")) show();
    else if (event.key === "/") $("text").focus();
    else if (event.key === "?") $("keys").showModal();
    else return;
    event.preventDefault();
  });

  $("scans").addEventListener("click", (event) => {
    const item = event.target.closest(".card");
    if (!item) return;
    select(view.indexOf(item.scan), false);
    if (event.target.dataset.rating) rate(item.scan, event.target.dataset.rating, false);
    else if (event.target.closest(".picture")) show();
    else if (!event.target.matches("input, button")) item.focus({ preventScroll: true });
  });
  $("scans").addEventListener("focusin", (event) => {
    const item = event.target.closest(".card");
    if (item && view[current] !== item.scan) select(view.indexOf(item.scan), false);
  });
  $("scans").addEventListener("change", (event) => {
    if (event.target.matches(".note")) change(event.target.closest(".card").scan, { note: event.target.value.trim() });
  });
  for (const id of ["status", "rating", "sort"]) $(id).addEventListener("change", refresh);
  $("text").addEventListener("input", refresh);
  $("direction").addEventListener("click", () => {
    const down = $("direction").getAttribute("aria-pressed") !== "true";
    $("direction").setAttribute("aria-pressed", down);
    $("direction").textContent = down ? "↓" : "↑";
    refresh();
  });
  $("export").addEventListener("click", download);
  $("import").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => {
    const file = $("file").files[0];
    if (file) take(await file.text());
    $("file").value = "";
  });
  $("help").addEventListener("click", () => $("keys").showModal());
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || "close" in event.target.dataset) dialog.close();
    });
  }
  window.addEventListener("storage", (event) => {
    if (event.key !== KEY) return; // rated in another window
    load();
    scans.forEach(dress);
    count();
  });
  window.addEventListener("beforeprint", () => {
    more(view.length);
    for (const image of document.querySelectorAll("#scans img")) image.loading = "eager";
  });
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && made < view.length) more();
  }, { rootMargin: "1500px" }).observe($("more"));

  // --- start --------------------------------------------------------------------------------------------------------
  const number = (test) => scans.filter(test).length;
  const statuses = ["done", "failed", "broken", "unfinished"].filter((s) => scans.some((scan) => scan.status === s));
  $("status").append(new Option("all", ""), ...statuses.map((status) => new Option(status, status)));
  $("counts").textContent = statuses.map((s) => number((scan) => scan.status === s) + " " + s).join(" · ");
  for (const flag of data.flags) {
    const row = $("rules").insertRow();
    row.insertCell().append(chip(flag.code, "span"));
    row.insertCell().textContent = flag.rule;
    const many = number((scan) => scan.flags.includes(flag.code));
    if (!many) continue;
    const button = chip(flag.code, "button");
    button.type = "button";
    button.textContent += " " + many;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const on = !chosen.has(flag.code);
      chosen[on ? "add" : "delete"](flag.code);
      button.setAttribute("aria-pressed", on);
      refresh();
    });
    $("flags").append(button);
  }
  load();
  refresh();
})();
