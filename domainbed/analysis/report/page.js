"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const colour = (index) => `var(--c${index % 8})`;

  function make(parent, name, attributes = {}, text = null) {
    const drawn = parent instanceof SVGElement || name === "svg";
    const element = drawn ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== null) element.textContent = text;
    parent.append(element);
    return element;
  }

  const round = (value) => value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3
    ? value.toExponential(1) : String(Number(value.toPrecision(4)));

  // light and dark
  const theme = document.getElementById("theme");
  const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
  const showTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(isDark()));
    theme.setAttribute("aria-label", isDark() ? "Dark colours are on: change to light ones" : "Change to dark colours");
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  showTheme();

  document.getElementById("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(data.figures, null, 1)], {type: "application/json"}));
    link.download = "figures.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  // tables
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const order = before === "ascending" ? "descending" : before === "descending" ? "ascending"
        : numeric ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => {
        const cell = row.cells[column];
        if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
        return numeric && isNaN(parseFloat(cell.textContent)) ? null : cell.textContent;
      };
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "number" && typeof b === "number" ? a - b
          : String(a).localeCompare(String(b), undefined, {numeric: true}));
      });
      table.tBodies[0].append(...rows);
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
    }));
  }

  // curves
  function ticks(low, high, count) {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw);
    const found = [];
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) {
      const small = decimals > 5 || Math.abs(at) >= 1e6;
      found.push([at, small ? round(at) : (Math.abs(at) < step / 2 ? 0 : at).toFixed(decimals)]);
    }
    return found;
  }

  function scale(values, later) {
    const low = Math.min(...values), high = Math.max(...values);
    if (low > 0 && high / low > 100) {
      const [a, b] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
      const every = Math.max(1, Math.ceil((b - a) / 5));
      const marks = [];
      for (let power = a; power <= b; power += every) marks.push([10 ** power, round(10 ** power)]);
      return {to: (value) => (Math.log10(Math.max(value, low)) - Math.log10(low)) / (Math.log10(high) - Math.log10(low)),
        marks: marks.filter(([mark]) => mark >= low && mark <= high)};
    }
    let [a, b] = [Math.min(...later), Math.max(...later)];
    const margin = 0.06 * (b - a) || 0.05 * Math.abs(b) || 1;
    if (!(high > b + 5 * margin || low < a - 5 * margin)) [a, b] = [low, high];
    a -= margin; b += margin;
    return {to: (value) => (value - a) / (b - a), marks: ticks(a, b, 4)};
  }

  function chart(parent, title, drawn, index) {
    const figure = make(parent, "figure");
    make(figure, "h4", {}, title);
    const [width, height, left, right, top, bottom] = [340, 210, 56, 12, 8, 28];
    const svg = make(figure, "svg", {viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img",
      "aria-label": `${title} by step, ${drawn.length} runs. Arrow keys read the values.`});
    const steps = [...new Set(drawn.flatMap((one) => one.steps))].sort((a, b) => a - b);
    const values = drawn.flatMap((one) => one.mean.flatMap((mean, k) => one.sd ? [mean - one.sd[k], mean + one.sd[k]] : [mean]));
    const means = drawn.flatMap((one) => one.mean);
    const late = drawn.flatMap((one) => one.mean.slice(Math.floor(one.mean.length / 10)));
    const later = steps.length < 20 ? values : late;
    const y = scale(Math.min(...means) > 0 && Math.max(...means) / Math.min(...means) > 100 ? means : values, later);
    const [first, last] = [steps[0], steps[steps.length - 1]];
    const px = (step) => left + (last > first ? (step - first) / (last - first) : 0.5) * (width - left - right);
    const py = (value) => top + (1 - Math.min(1.2, Math.max(-0.2, y.to(value)))) * (height - top - bottom);
    const id = `clip-${index}`;
    const clip = make(make(svg, "defs"), "clipPath", {id});
    make(clip, "rect", {x: left, y: top, width: width - left - right, height: height - top - bottom});
    for (const [mark, text] of y.marks) {
      make(svg, "line", {x1: left, x2: width - right, y1: py(mark), y2: py(mark), class: "axis"});
      make(svg, "text", {x: left - 6, y: py(mark) + 4, "text-anchor": "end"}, text);
    }
    for (const [mark, text] of ticks(first, last, 4)) {
      make(svg, "text", {x: px(mark), y: height - 8, "text-anchor": "middle"}, text);
    }
    make(svg, "path", {d: `M${left},${top}V${height - bottom}H${width - right}`, class: "axis"});
    const lines = make(svg, "g", {"clip-path": `url(#${id})`});
    for (const one of drawn) {
      const at = (k, offset) => `${px(one.steps[k])},${py(one.mean[k] + offset)}`;
      const every = one.steps.map((_, k) => k);
      if (one.sd) {
        const area = [...every.map((k) => at(k, one.sd[k])), ...every.reverse().map((k) => at(k, -one.sd[k]))];
        every.reverse();
        make(lines, "polygon", {points: area.join(" "), style: `fill:${colour(one.number)}`, opacity: 0.15});
      }
      make(lines, "polyline", {points: every.map((k) => at(k, 0)).join(" "), fill: "none", "stroke-width": 2,
        style: `stroke:${colour(one.number)}`, "stroke-dasharray": one.finished ? "none" : "2 3"});
      if (one.steps.length < 12) for (const k of every) {
        make(lines, "circle", {cx: px(one.steps[k]), cy: py(one.mean[k]), r: 2.5, style: `fill:${colour(one.number)}`});
      }
    }
    const cursor = make(svg, "line", {y1: top, y2: height - bottom, class: "cursor", visibility: "hidden"});
    const readout = make(figure, "p", {class: "readout", "aria-live": "polite"});
    const outside = drawn.flatMap((one) => one.mean.map((mean, k) => [one.steps[k], mean]))
      .filter(([, mean]) => y.to(mean) > 1 + 1e-9 || y.to(mean) < -1e-9);
    if (outside.length) { // the first steps of a loss would flatten all that follows
      const [step, mean] = outside[0];
      readout.textContent = `beyond this scale: ${round(mean)} at step ${round(step)}${outside.length > 1 ? ", and more" : ""}`;
    }
    let shown = steps.length;
    function show(which) {
      shown = Math.min(steps.length - 1, Math.max(0, which));
      const step = steps[shown];
      cursor.setAttribute("x1", px(step)); cursor.setAttribute("x2", px(step)); cursor.setAttribute("visibility", "visible");
      const texts = drawn.map((one) => {
        let k = 0;
        one.steps.forEach((at, j) => { if (Math.abs(at - step) < Math.abs(one.steps[k] - step)) k = j; });
        const deviation = one.sd ? ` ± ${round(one.sd[k])}` : "";
        return `${one.run}: ${round(one.mean[k])}${deviation}${one.steps[k] === step ? "" : ` (step ${round(one.steps[k])})`}`;
      });
      readout.textContent = `step ${round(step)}\n${texts.join("\n")}`;
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = (event.clientX - box.left) / box.width * width;
      let nearest = 0;
      steps.forEach((step, k) => { if (Math.abs(px(step) - at) < Math.abs(px(steps[nearest]) - at)) nearest = k; });
      show(nearest);
    });
    svg.addEventListener("keydown", (event) => {
      const move = {ArrowLeft: shown - 1, ArrowRight: shown + 1, Home: 0, End: steps.length - 1}[event.key];
      if (move === undefined) return;
      event.preventDefault();
      show(move);
    });
  }

  let charts = 0;
  for (const place of document.querySelectorAll(".curves")) {
    const {panels, runs} = data.curves[place.dataset.key];
    if (runs.length > 1) {
      const legend = make(place, "ul", {class: "legend"});
      runs.forEach((run, number) => {
        const item = make(legend, "li");
        const svg = make(item, "svg", {viewBox: "0 0 26 14", "aria-hidden": "true"});
        make(svg, "line", {x1: 0, x2: 26, y1: 7, y2: 7, "stroke-width": 3, style: `stroke:${colour(number)}`,
          "stroke-dasharray": run.finished ? "none" : "2 3"});
        item.append(run.label + (run.finished ? "" : " (unfinished)"));
      });
    }
    const grid = make(place, "div", {class: "grid"});
    for (const panel of panels) chart(grid, panel.title, panel.curves, charts++);
  }

  // reconstructions
  for (const place of document.querySelectorAll(".slider")) {
    const pictures = data.slider[place.dataset.key];
    const [what, step, out, image] = ["select", "input", "output", "img"].map((name) => place.querySelector(name));
    const show = () => {
      const series = pictures[what.value];
      step.max = series.length - 1;
      const one = series[Math.min(Number(step.value), series.length - 1)];
      image.src = one.src; image.width = one.width; image.height = one.height;
      out.textContent = one.label;
      step.setAttribute("aria-valuetext", one.label);
      image.alt = `${what.selectedOptions[0].textContent}, ${one.label}`;
    };
    what.addEventListener("change", show);
    step.addEventListener("input", show);
    show();
  }

  // the map
  const SHAPES = [
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-3.5,-3.5h7v7h-7z", "M0,-4.5L4.5,3.5H-4.5z", "M0,-5L5,0L0,5L-5,0z",
    "M0,4.5L4.5,-3.5H-4.5z", "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", "M-4,-4L4,4M4,-4L-4,4", "M0,-5L1.5,-1.5L5,0L1.5,1.5L0,5L-1.5,1.5L-5,0L-1.5,-1.5z",
  ];
  for (const place of document.querySelectorAll(".map")) {
    const map = data.map[place.dataset.key];
    const svg = place.querySelector(".plot > svg");
    const by = place.querySelector("select");
    const legend = place.querySelector(".legend");
    const thumb = place.querySelector(".thumb");
    const text = place.querySelector(".shown p");
    const points = map.points.map(([x, y]) => [20 + 600 * x, 20 + 440 * y]);
    const marks = points.map(([x, y]) => make(svg, "path", {transform: `translate(${x},${y})`, "stroke-width": 1.5}));
    const halo = make(svg, "circle", {r: 9, class: "halo", visibility: "hidden"});
    const names = {class: map.classes, environment: map.environments};
    const style = (element, index) => {
      element.setAttribute("d", SHAPES[(index + Math.floor(index / 8)) % 8]);
      element.setAttribute("style", index < 0 ? "fill:var(--faint)" : `fill:${colour(index)};stroke:${index % 8 === 6 ? colour(index) : "none"}`);
      element.setAttribute("opacity", 0.8);
    };
    const paint = () => {
      marks.forEach((mark, k) => style(mark, map[by.value][k]));
      legend.replaceChildren();
      const present = [...new Set(map[by.value])].sort((a, b) => a - b);
      for (const index of present) {
        const item = make(legend, "li");
        const key = make(item, "svg", {viewBox: "-7 -7 14 14", "aria-hidden": "true"});
        style(make(key, "path", {"stroke-width": 1.5}), index);
        item.append(index < 0 ? "without a label" : names[by.value][index]);
      }
    };
    let shown = -1;
    const show = (k) => {
      if (k === shown) return;
      shown = k;
      halo.setAttribute("cx", points[k][0]); halo.setAttribute("cy", points[k][1]); halo.setAttribute("visibility", "visible");
      const size = 144 / map.tile, column = k % map.columns, row = Math.floor(k / map.columns);
      thumb.style.backgroundImage = `url(${map.sprite})`;
      thumb.style.backgroundSize = `${map.columns * 144}px auto`;
      thumb.style.backgroundPosition = `${-column * map.tile * size}px ${-row * map.tile * size}px`;
      const label = map.class[k] < 0 || !map.classes.length ? "" : `class ${map.classes[map.class[k]]}\n`;
      text.style.whiteSpace = "pre-line";
      text.textContent = `${map.names[k]}\n${label}${map.environments[map.environment[k]]}\n${map.roles[k]}`;
      thumb.setAttribute("aria-label", `image ${map.names[k]}`);
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const [x, y] = [(event.clientX - box.left) / box.width * 640, (event.clientY - box.top) / box.height * 480];
      let nearest = -1, least = 20 ** 2;
      points.forEach(([a, b], k) => { const far = (a - x) ** 2 + (b - y) ** 2; if (far < least) [nearest, least] = [k, far]; });
      if (nearest >= 0) show(nearest);
    });
    const along = [0, 1].map((axis) => points.map((_, k) => k).sort((a, b) => points[a][axis] - points[b][axis]));
    const go = (axis, move) => {
      const order = along[axis];
      show(order[Math.min(order.length - 1, Math.max(0, (shown < 0 ? -1 : order.indexOf(shown)) + move))]);
    };
    svg.addEventListener("keydown", (event) => {
      const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1]}[event.key];
      if (move === undefined) return;
      event.preventDefault();
      go(...move);
    });
    svg.addEventListener("focus", () => { if (shown < 0 && svg.matches(":focus-visible")) go(0, 1); });
    by.addEventListener("change", paint);
    paint();
  }
})();
