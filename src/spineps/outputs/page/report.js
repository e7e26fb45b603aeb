"use strict";
// The page is complete without this script: it adds the viewer and ties rows, plots and viewer together.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const rowOf = new Map(data.rows.map((row) => [row.label, row]));
  const AXIAL = 0, CORONAL = 1, SAGITTAL = 2, RENDER = 4;
  const MASKS = { structures: 1, vertebrae: 2 }; // their places among the viewer's volumes
  const TURNED = [125, 10]; // 3-D as it is first seen: from the right and in front
  const state = { view: "all", vertebrae: true, structures: false, outline: true, names: true, opacity: 0.4, hidden: false };
  let flat = null; // slices
  let solid = null; // 3-D, made when it is first seen
  let slow = false; // no graphics card: 3-D is drawn when it is asked for
  let here = 0;

  // --- light and dark: the style's own condition is what is switched -------------------------------------------------
  const wish = matchMedia("(prefers-color-scheme: dark)");
  const rules = [...document.styleSheets[0].cssRules].filter((rule) => rule.media?.mediaText.includes("prefers-color-scheme"));
  let dark = wish.matches;

  function dress() {
    for (const rule of rules) rule.media.mediaText = dark ? "screen" : "not all";
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
  }

  function turn(to) {
    dark = to;
    dress();
  }
  wish.addEventListener("change", () => turn(wish.matches));

  // --- rows and plots ----------------------------------------------------------------------------------------------
  function mark(label, scroll) {
    here = label;
    for (const item of document.querySelectorAll("[data-label]")) {
      const mine = Number(item.dataset.label) === label;
      if (mine) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    }
    const row = document.querySelector('#levels tr[aria-current="true"]');
    const side = $("side");
    if (scroll && row && side.scrollHeight > side.clientHeight) {
      const top = row.offsetTop - side.offsetTop;
      if (top < side.scrollTop + 40 || top + row.offsetHeight > side.scrollTop + side.clientHeight) {
        side.scrollTop = top - side.clientHeight / 2;
      }
    }
  }

  function jump(label) {
    const row = rowOf.get(label);
    if (!row) return;
    mark(label, true);
    if (flat) goto(row.at);
  }

  function step(by) {
    const order = data.rows.filter((row) => row.kind === "vertebra");
    const place = order.findIndex((row) => row.label === here % 100);
    const next = place < 0 ? (by > 0 ? 0 : order.length - 1) : Math.min(Math.max(place + by, 0), order.length - 1);
    if (order.length) jump(order[next].label);
  }

  // --- the viewer --------------------------------------------------------------------------------------------------
  async function unpack(id) {
    const text = atob($(id).textContent);
    const bytes = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }

  function fallBack(why) {
    document.body.classList.add("flat");
    flat = solid = null;
    const note = document.createElement("p");
    note.id = "fallback";
    note.textContent = why + " The picture is shown instead; rows and measurements are complete.";
    $("viewer").prepend(note, ...[$("snapshot")].filter(Boolean));
    document.documentElement.dataset.ready = "picture";
  }

  const rgb = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));

  // colors: {label: "#rrggbb"}; alpha of 3-D bodies too
  function palette(colors, faint = {}) {
    const labels = Object.keys(colors).map(Number).sort((a, b) => a - b);
    const parts = labels.map((label) => rgb(colors[label]));
    const pick = (k) => [0, ...parts.map((part) => part[k])];
    const alpha = [0, ...labels.map((label) => faint[label] ?? 255)];
    return { R: pick(0), G: pick(1), B: pick(2), A: alpha, I: [0, ...labels], labels: ["", ...labels.map(String)] };
  }

  const structureColors = Object.fromEntries(Object.entries(data.structures).map(([label, [, color]]) => [label, color]));

  function options() {
    return {
      isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, loadingText: "", logLevel: "error",
      backColor: [0.063, 0.063, 0.078, 1], crosshairColor: [0.95, 0.85, 0.2, 0.8], crosshairWidth: 1, crosshairGap: 6,
      fontColor: [0.85, 0.87, 0.9, 1], fontMinPx: 14, fontSizeScaling: 0.35, showAllOrientationMarkers: true, tileMargin: 0,
      isRuler: false, isColorbar: false, isForceMouseClickToVoxelCenters: false,
      mouseEventConfig: { leftButton: { primary: 8 }, rightButton: 9, centerButton: 3 },
      viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
    };
  }

  async function volume(id, colors, opacity, faint) {
    const image = await niivue.NVImage.new(await unpack(id), id + ".nii", "gray", opacity);
    if (colors) image.setColormapLabel(palette(colors, faint));
    if (colors && !faint) image.hdr.intent_code = 1002; // a label map, whose borders can be drawn
    return image;
  }

  async function open() {
    const context = document.createElement("canvas").getContext("webgl2");
    if (!context) return fallBack("This browser has no WebGL 2, which the viewer needs.");
    if (typeof DecompressionStream === "undefined") return fallBack("This browser is too old for the viewer.");
    const card = context.getExtension("WEBGL_debug_renderer_info");
    slow = /swiftshader|llvmpipe|software|basic render/i.test(card ? context.getParameter(card.UNMASKED_RENDERER_WEBGL) : "");
    $("solid").dataset.slow = slow;
    context.getExtension("WEBGL_lose_context")?.loseContext();
    const program = document.createElement("script");
    program.textContent = new TextDecoder().decode(await unpack("niivue"));
    document.head.append(program);
    flat = new niivue.Niivue(options());
    const draw = flat.drawScene.bind(flat);
    flat.drawScene = () => {
      draw();
      tag();
    };
    flat.onLocationChange = moved;
    await flat.attachToCanvas($("slices"));
    const image = await volume("image", null, 1);
    [image.cal_min, image.cal_max] = [image.robust_min, image.robust_max] = data.shown;
    // All at once: every addVolume() would send all of them to the graphics card again.
    flat.volumes = [image, await volume("structures", structureColors, 0), await volume("vertebrae", data.vertebrae, 0.4)];
    flat.setVolume(image, 0);
    $("wait").remove();
    apply();
    arrange();
    const middle = data.rows.filter((row) => row.kind === "vertebra");
    if (middle.length) jump(middle[Math.floor(middle.length / 2)].label);
    document.documentElement.dataset.ready = "viewer";
    window.report = { get flat() { return flat; }, get solid() { return solid; }, state }; // for those who look inside
    if (!$("solid").hidden && !slow) setTimeout(() => openSolid().catch(lost), 30);
  }

  async function openSolid() {
    if (solid || !flat) return;
    const made = (solid = new niivue.Niivue({ ...options(), crosshairWidth: 0.6, isOrientCube: true }));
    await made.attachToCanvas($("bodies"));
    made.setSliceType(RENDER);
    await dressSolid();
    await made.setVolumeRenderIllumination(0.7);
    made.setRenderAzimuthElevation(...TURNED);
    $("solid").classList.add("on");
    made.onLocationChange = (where) => {
      if (flat && where.axCorSag === RENDER) goto(flat.mm2frac(where.mm, 0, true));
    };
    document.documentElement.dataset.solid = "ready";
  }

  // 3-D shows one mask: the vertebrae, unless only the structures are on.
  async function dressSolid() {
    if (!solid) return;
    const which = state.structures && !state.vertebrae ? "structures" : "vertebrae";
    if (solid.shown === which) return;
    solid.shown = which;
    const canal = { 60: structureColors[60], 61: structureColors[61] };
    const colors = which === "structures" ? structureColors : { ...data.vertebrae, ...canal, 1: "", 2: "", 99: data.vertebrae[1], 98: data.vertebrae[2] };
    const known = Object.fromEntries(Object.entries(colors).filter(([, color]) => color));
    const body = await volume(which + "3d", known, 1, { 61: 60 });
    for (const old of [...solid.volumes]) solid.removeVolume(old);
    solid.addVolume(body);
  }

  const lost = (error) => {
    console.warn(error);
    fallBack("The viewer could not be opened (" + error.message + ").");
  };

  function goto(at) {
    flat.scene.crosshairPos = Float32Array.from(at);
    flat.createOnLocationChange();
    flat.drawScene();
  }

  function moved(where) {
    const value = (k) => Math.round(where.values[k]?.value ?? 0);
    const label = value(MASKS.vertebrae);
    const row = rowOf.get(label >= 200 ? label - 200 : label);
    mark(row ? row.label : 0, true);
    const side = (number, plus, minus) => (number < 0 ? minus : plus) + " " + Math.abs(number).toFixed(1);
    const [x, y, z] = where.mm;
    const words = [row?.name, data.structures[value(MASKS.structures)]?.[0]].filter(Boolean);
    words.push(side(x, "R", "L") + "  " + side(y, "A", "P") + "  " + side(z, "S", "I") + " mm");
    if (data.image) words.push("grey value " + Math.round(data.scale[0] + data.scale[1] * (where.values[0]?.value ?? 0)));
    $("point").textContent = words.join(" · ");
  }

  // --- what is shown where -----------------------------------------------------------------------------------------
  function arrange() {
    const stage = $("stage");
    const [w, h] = [stage.clientWidth, stage.clientHeight];
    const solidBox = $("solid");
    const only = { sagittal: SAGITTAL, coronal: CORONAL, axial: AXIAL }[state.view];
    const place = (box) => {
      const [left, top, width, height] = box.map((v) => v * 100 + "%");
      Object.assign(solidBox.style, { inset: "auto", left, top, width, height });
    };
    solidBox.hidden = only !== undefined;
    $("flat").hidden = state.view === "3d";
    $("tags").hidden = state.view === "3d";
    let layout = [{ sliceType: only, position: [0, 0, 1, 1] }];
    if (state.view === "3d") place([0, 0, 1, 1]);
    else if (only === undefined) {
      const [, x, y, z] = flat.volumes[0].dimsRAS.map((n, k) => (k ? n * flat.volumes[0].pixDimsRAS[k] : 0));
      if (w < 700) {
        const cut = 0.62, part = Math.min(Math.max(y / (x + y), 0.45), 0.65);
        layout = [[SAGITTAL, 0, 0, part, cut], [CORONAL, part, 0, 1 - part, cut], [AXIAL, 0, cut, 0.5, 1 - cut]];
        place([0.5, cut, 0.5, 1 - cut]);
      } else {
        // Sagittal and coronal as wide as they are at full height, within limits; the rest is shared by the other two.
        const room = 0.7, wide = [y, x].map((mm) => Math.max((mm / z) * (h / w), 0.16) * 1.06);
        const scale = Math.min(Math.max(room / (wide[0] + wide[1]), 0.01), Math.max(1, 0.55 / (wide[0] + wide[1])));
        const [a, b] = wide.map((v) => v * scale);
        layout = [[SAGITTAL, 0, 0, a, 1], [CORONAL, a, 0, b, 1], [AXIAL, a + b, 0, 1 - a - b, 0.45]];
        place([a + b, 0.45, 1 - a - b, 0.55]);
      }
      layout = layout.map(([sliceType, ...position]) => ({ sliceType, position }));
    }
    if (state.view !== "3d") flat.setCustomLayout(layout);
    if (!solidBox.hidden && (state.view === "3d" || solid || !slow) && document.documentElement.dataset.ready) openSolid().then(() => solid?.resizeListener()).catch(lost);
  }

  function apply() {
    for (const button of document.querySelectorAll("[data-act][aria-pressed]")) {
      button.setAttribute("aria-pressed", state[button.dataset.act]);
    }
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", button.dataset.view === state.view);
    }
    $("opacity").value = Math.round(state.opacity * 100);
    legend();
    if (!flat) return;
    for (const [key, place] of Object.entries(MASKS)) {
      const on = state[key] && !state.hidden;
      flat.volumes[place].opacity = on ? state.opacity : 0;
      flat.opts.atlasOutline = on && state.outline ? Math.max(state.opacity, 0.8) : 0;
      flat.refreshLayers(flat.volumes[place], place); // the masks alone: the image stays on the graphics card
    }
    flat.drawScene();
    dressSolid().catch(lost);
  }

  function legend() {
    $("legend").hidden = !state.structures;
    $("legend").replaceChildren(...Object.values(data.structures).map(([name, color]) => {
      const item = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.className = "swatch";
      swatch.style.background = color;
      item.append(swatch, name);
      return item;
    }));
  }

  // Names beside the vertebrae, as elements over the canvas: sharp, and they never hide under a mask.
  function tag() {
    const tags = $("tags");
    const found = [];
    const dense = data.rows.length > 36;
    tags.classList.toggle("dense", dense);
    if (flat?.volumes.length && state.names && state.view !== "3d") {
      const at = flat.scene.crosshairPos;
      const ratio = flat.uiData.dpr || 1;
      for (const [slice, key, axis] of [[SAGITTAL, "front", 0], [CORONAL, "side", 1]]) {
        let lowest = -Infinity;
        for (const row of data.rows) {
          if (row.kind !== "vertebra") continue;
          const point = [...row[key]];
          point[axis] = at[axis];
          const hit = flat.frac2canvasPosWithTile(point, slice);
          if (!hit) continue;
          const [left, top, width, height] = flat.screenSlices[hit.tileIndex].leftTopWidthHeight;
          const [x, y] = [hit.pos[0] / ratio, Math.max(hit.pos[1] / ratio, lowest)];
          if (x < left / ratio || x > (left + width) / ratio || y < top / ratio || y > (top + height) / ratio) continue;
          lowest = y + (dense ? 10.5 : 13);
          const edge = left / ratio + 8 * row.name.length + 8;
          found.push([row, Math.max(x - 5, edge), y]);
        }
      }
    }
    while (tags.children.length < found.length) tags.append(document.createElement("span"));
    while (tags.children.length > found.length) tags.lastChild.remove();
    found.forEach(([row, x, y], k) => {
      const item = tags.children[k];
      item.textContent = row.name;
      item.className = row.label === here ? "here" : "";
      Object.assign(item.style, { left: x + "px", top: y + "px", color: data.vertebrae[row.label] });
    });
  }

  function zoom(by) {
    const pan = [...flat.scene.pan2Dxyzmm];
    const next = Math.min(Math.max(pan[3] * by, 0.5), 10);
    const mm = flat.frac2mm(flat.scene.crosshairPos);
    flat.setPan2Dxyzmm([0, 1, 2].map((k) => pan[k] + (pan[3] - next) * mm[k]).concat(next));
  }

  // --- events ------------------------------------------------------------------------------------------------------
  const acts = {
    vertebrae: () => (state.vertebrae = !state.vertebrae),
    structures: () => (state.structures = !state.structures),
    outline: () => (state.outline = !state.outline),
    names: () => (state.names = !state.names),
    reset: () => {
      [flat.volumes[0].cal_min, flat.volumes[0].cal_max] = data.shown;
      flat.refreshLayers(flat.volumes[0], 0);
      flat.setPan2Dxyzmm([0, 0, 0, 1]);
      solid?.setScale(1);
      solid?.setRenderAzimuthElevation(...TURNED);
    },
  };
  const views = ["all", "sagittal", "coronal", "axial", "3d"];

  function act(name) {
    if (!flat) return;
    acts[name]();
    apply();
  }

  function look(view) {
    if (!flat) return;
    state.view = view;
    apply();
    arrange();
  }

  const keys = {
    ArrowUp: () => step(-1), ArrowDown: () => step(1),
    ArrowLeft: () => flat?.moveCrosshairInVox(1, 0, 0), ArrowRight: () => flat?.moveCrosshairInVox(-1, 0, 0),
    v: () => act("vertebrae"), s: () => act("structures"), o: () => act("outline"), n: () => act("names"), r: () => act("reset"),
    "[": () => fade(state.opacity - 0.1), "]": () => fade(state.opacity + 0.1),
    "+": () => flat && zoom(1.25), "=": () => flat && zoom(1.25), "-": () => flat && zoom(0.8),
    t: () => turn(!dark), "?": () => $("keys").showModal(),
    " ": () => hide(true),
  };
  views.forEach((view, k) => (keys[k + 1] = () => look(view)));

  function fade(to) {
    state.opacity = Math.min(Math.max(to, 0), 1);
    apply();
  }

  function hide(yes) {
    if (state.hidden === yes) return;
    state.hidden = yes;
    apply();
  }

  // Before NiiVue sees them: its own keys are others.
  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || $("keys").open) return;
    const control = event.target.matches?.("input, select, textarea");
    if (control && event.key.startsWith("Arrow")) return;
    if (event.key === " " && event.target.matches?.("button, summary, input")) return;
    event.stopPropagation();
    if (!(event.key in keys)) return;
    keys[event.key]();
    event.preventDefault();
  }, true);
  window.addEventListener("keyup", (event) => {
    if (event.key === " ") hide(false);
    if (!event.target.matches?.("input, button, summary")) event.stopPropagation();
  }, true);
  window.addEventListener("blur", () => hide(false));

  document.addEventListener("click", (event) => {
    const target = event.target;
    if (target.closest("[data-act]")) act(target.closest("[data-act]").dataset.act);
    else if (target.closest("[data-view]")) look(target.closest("[data-view]").dataset.view);
    else if (target.closest("[data-label]")) jump(Number(target.closest("[data-label]").dataset.label));
  });
  $("opacity").addEventListener("input", () => fade($("opacity").value / 100));
  $("theme").addEventListener("click", () => turn(!dark));
  $("help").addEventListener("click", () => $("keys").showModal());
  $("keys").addEventListener("click", (event) => {
    if (event.target === $("keys") || "close" in event.target.dataset) $("keys").close();
  });
  $("stage").addEventListener("wheel", (event) => {
    if (!event.ctrlKey || !flat) return;
    event.preventDefault();
    event.stopPropagation();
    zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
  }, { capture: true, passive: false });
  new ResizeObserver(() => flat?.volumes.length > 2 && arrange()).observe($("stage"));

  // A canvas may not be printed; a picture of it is.
  window.addEventListener("beforeprint", () => {
    if (!flat) return;
    const canvases = [[flat, $("slices")], [solid, $("bodies")]].filter(([viewer]) => viewer);
    const sheet = document.createElement("canvas");
    const stage = $("stage").getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    [sheet.width, sheet.height] = [stage.width * ratio, stage.height * ratio];
    const pen = sheet.getContext("2d");
    for (const [viewer, canvas] of canvases) {
      if (!canvas.offsetParent) continue;
      viewer.drawScene(); // and taken at once: a moment later the canvas is empty again
      const box = canvas.getBoundingClientRect();
      pen.drawImage(canvas, (box.left - stage.left) * ratio, (box.top - stage.top) * ratio, box.width * ratio, box.height * ratio);
    }
    pen.font = "650 " + 12 * ratio + "px sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const item of $("tags").hidden ? [] : $("tags").children) {
      pen.fillStyle = item.style.color;
      pen.fillText(item.textContent, parseFloat(item.style.left) * ratio, parseFloat(item.style.top) * ratio);
    }
    $("printed").src = sheet.toDataURL("image/jpeg", 0.9);
    $("printed").hidden = false;
  });

  dress();
  open().catch(lost);
})();
