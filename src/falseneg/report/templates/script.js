"use strict";
// Adds to a page that is whole without it: anchors enlarged, and a map that can be searched and zoomed.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const button = (label, text, act) => {
    const made = make("button", { type: "button", "aria-label": label, title: label }, text);
    made.addEventListener("click", act);
    return made;
  };

  function enlargements() {
    const groups = all("#gallery div.anchor");
    if (!groups.length) return;
    const filter = document.getElementById("only-wrong");
    const title = make("h3", { id: "enlarged-title" });
    const content = make("div", { class: "content" });
    let shown = 0;
    const tools = make("div", { class: "buttons" },
      button("Previous anchor", "←", () => show(shown - 1)), button("Next anchor", "→", () => show(shown + 1)),
      button("Close", "✕", () => dialog.close()));
    const header = make("header", {}, title, tools);
    const dialog = make("dialog", { class: "enlarged", "aria-labelledby": title.id }, header, content);
    if (filter) {
      const copy = make("input", { type: "checkbox" });
      copy.addEventListener("change", () => { filter.checked = copy.checked; });
      tools.before(make("label", { class: "switch" }, copy, make("span", {}, "Only wrong flags")));
      dialog.sync = () => { copy.checked = filter.checked; };
    }

    function tile(thumb) {
      const picture = thumb.querySelector("img"), caption = thumb.querySelector(".caption");
      const verdict = ["right", "wrong"].find((name) => thumb.classList.contains(name));
      const copy = make("img", { src: picture.src, alt: picture.alt });
      const lines = [caption && make("b", {}, caption.textContent), make("span", {}, thumb.dataset.name)];
      const said = [verdict && `${verdict === "right" ? "✓" : "✗"} ${verdict}`, thumb.dataset.score && `cosine ${thumb.dataset.score}`];
      lines.push(make("small", {}, ...said.filter(Boolean).map((text) => make("i", {}, text))));
      return make("li", { class: `${thumb.className} tile` }, copy, ...lines.filter((line) => line && line.textContent));
    }

    function show(index) {
      shown = (index + groups.length) % groups.length;
      const group = groups[shown], anchor = group.querySelector(".who .thumb");
      title.textContent = `Anchor ${shown + 1} of ${groups.length}`;
      const flags = make("div", { class: "flags" }), variant = group.closest("details");
      content.replaceChildren(make("ul", { class: "tiles who" }, tile(anchor)), flags);
      if (variant) flags.append(make("p", { class: "of" }, variant.querySelector("summary").textContent.trim()));
      for (const strip of all(".strip", group)) {
        const thumbs = all(".thumb", strip), nothing = strip.querySelector(".nothing");
        flags.append(make("h4", {}, strip.querySelector(".age").textContent));
        if (thumbs.length) flags.append(make("ul", { class: "tiles" }, ...thumbs.map(tile)));
        if (nothing) flags.append(nothing.cloneNode(true));
      }
      if (dialog.sync) dialog.sync();
      if (!dialog.open) dialog.showModal();
      content.scrollTop = 0;
    }

    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") show(shown - 1);
      if (event.key === "ArrowRight") show(shown + 1);
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    document.body.append(dialog);
    groups.forEach((group, index) => {
      const picture = group.querySelector(".who img");
      const opener = button(`Enlarge anchor ${index + 1}: ${picture.alt.replace("anchor, ", "")}`, "", () => show(index));
      opener.className = "opener";
      picture.replaceWith(opener);
      opener.append(picture);
      all(".strip img", group).forEach((one) => one.addEventListener("click", () => show(index)));
      group.classList.add("opens");
    });
  }

  function map(figure) {
    const svg = figure.querySelector("svg"), points = JSON.parse(figure.dataset.points);
    const groups = JSON.parse(figure.dataset.groups), width = svg.viewBox.baseVal.width, height = svg.viewBox.baseVal.height;
    const paths = all("path.point", svg), names = all("text.place", svg);
    const sheet = figure.dataset.sheet === undefined ? null : all("#map .sheet")[figure.dataset.sheet].dataset.sheet;
    const view = { scale: 1, x: 0, y: 0 };
    let chosen = -1, only = -1, first = 0;

    // Each mark begins with its only absolute place, so it can be moved without growing.
    const marks = paths.map((path, group) => {
      const each = path.getAttribute("d").split("M").slice(1);
      const [, x, y, shape] = each[0].match(/^([-\d.]+) ([-\d.]+)(.*)$/);
      const made = { path, group, first, count: each.length, shape, dx: x - points.x[first], dy: y - points.y[first] };
      first += each.length;
      return made;
    });
    const groupOf = (index) => marks.findIndex((mark) => index < mark.first + mark.count);
    const places = names.map((name) => [Number(name.getAttribute("x")), Number(name.getAttribute("y"))]);
    const across = (x) => x * view.scale + view.x, down = (y) => y * view.scale + view.y;

    const ring = document.createElementNS(svg.namespaceURI, "circle");
    ring.setAttribute("class", "ring");
    ring.setAttribute("r", "7");
    svg.append(ring);
    const picture = make("span", { class: "picture", "aria-hidden": "true" });
    const words = make("p", { "aria-live": "polite" }, "Point at a mark, or use the arrow keys on the map.");
    const look = make("div", { class: "look" }, picture, words);
    if (!sheet) picture.hidden = true;
    const controls = make("div", { class: "buttons zoom", role: "group", "aria-label": "Zoom" },
      button("Zoom in", "+", () => zoom(1.6)), button("Zoom out", "−", () => zoom(1 / 1.6)), button("Whole map", "⤢", whole));
    figure.querySelector("figcaption").append(controls);
    svg.after(look);
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("aria-roledescription", "map");

    function draw() {
      for (const mark of marks) {
        let path = "";
        for (let i = mark.first; i < mark.first + mark.count; i += 1) {
          path += `M${(across(points.x[i]) + mark.dx).toFixed(1)} ${(down(points.y[i]) + mark.dy).toFixed(1)}${mark.shape}`;
        }
        mark.path.setAttribute("d", path);
        mark.path.classList.toggle("dim", only >= 0 && only !== mark.group);
      }
      names.forEach((name, i) => {
        name.setAttribute("x", across(places[i][0]));
        name.setAttribute("y", down(places[i][1]));
      });
      ring.style.display = chosen < 0 ? "none" : "";
      if (chosen >= 0) {
        ring.setAttribute("cx", across(points.x[chosen]));
        ring.setAttribute("cy", down(points.y[chosen]));
      }
      svg.classList.toggle("zoomed", view.scale > 1);
    }

    function hold() {
      view.x = Math.min(0, Math.max(width * (1 - view.scale), view.x));
      view.y = Math.min(0, Math.max(height * (1 - view.scale), view.y));
      draw();
    }

    function zoom(by, at) {
      const middle = at || (chosen >= 0 ? [across(points.x[chosen]), down(points.y[chosen])] : [width / 2, height / 2]);
      const scale = Math.min(12, Math.max(1, view.scale * by));
      view.x = middle[0] - (middle[0] - view.x) * scale / view.scale;
      view.y = middle[1] - (middle[1] - view.y) * scale / view.scale;
      view.scale = scale;
      hold();
    }

    function whole() {
      Object.assign(view, { scale: 1, x: 0, y: 0 });
      draw();
    }

    function choose(index) {
      if (index < 0 || index === chosen) return;
      chosen = index;
      const name = points.names[index], group = groups[groupOf(index)];
      words.replaceChildren(make("b", {}, group), document.createElement("br"), name || "");
      if (sheet) {
        const side = picture.offsetWidth, left = index % points.across, top = Math.floor(index / points.across);
        picture.style.backgroundImage = `url("${sheet}")`;
        picture.style.backgroundSize = `${points.across * side}px auto`;
        picture.style.backgroundPosition = `${-left * side}px ${-top * side}px`;
      }
      draw();
    }

    function nearest(x, y, allowed) {
      let best = -1, least = Infinity;
      for (let i = 0; i < points.x.length; i += 1) {
        const distance = allowed(across(points.x[i]) - x, down(points.y[i]) - y, i);
        if (distance < least) [best, least] = [i, distance];
      }
      return best;
    }

    function step(dx, dy) {
      const x = chosen < 0 ? width / 2 : across(points.x[chosen]), y = chosen < 0 ? height / 2 : down(points.y[chosen]);
      choose(nearest(x, y, (right, low, i) => {
        const along = right * dx + low * dy, aside = Math.abs(right * dy) + Math.abs(low * dx);
        return i !== chosen && along > 0 && (only < 0 || groupOf(i) === only) ? along + 2 * aside : Infinity;
      }));
      if (chosen >= 0 && view.scale > 1) {
        view.x += Math.min(0, width - 20 - across(points.x[chosen])) + Math.max(0, 20 - across(points.x[chosen]));
        view.y += Math.min(0, height - 20 - down(points.y[chosen])) + Math.max(0, 20 - down(points.y[chosen]));
        hold();
      }
    }

    const at = (event) => {
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      return [place.x, place.y];
    };
    const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    svg.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (keys[event.key]) step(...keys[event.key]);
      else if (event.key === "+" || event.key === "=") zoom(1.6);
      else if (event.key === "-") zoom(1 / 1.6);
      else if (event.key === "0" || event.key === "Escape") whole();
      else return;
      event.preventDefault();
    });
    let dragged = null;
    svg.addEventListener("pointerdown", (event) => {
      dragged = view.scale > 1 ? at(event) : null;
      if (dragged) svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointerup", () => { dragged = null; });
    svg.addEventListener("pointercancel", () => { dragged = null; });
    for (const kind of ["pointerdown", "pointermove"]) {
      svg.addEventListener(kind, (event) => {
        const place = at(event);
        if (dragged && kind === "pointermove" && event.buttons) {
          view.x += place[0] - dragged[0];
          view.y += place[1] - dragged[1];
          dragged = place;
          hold();
        } else {
          const reach = event.pointerType === "touch" ? 18 : 9;
          choose(nearest(...place, (dx, dy, i) => {
            const distance = Math.hypot(dx, dy);
            return distance < reach && (only < 0 || groupOf(i) === only) ? distance : Infinity;
          }));
        }
      });
    }
    svg.addEventListener("dblclick", (event) => zoom(2, at(event)));
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // otherwise the page scrolls
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 200), at(event));
    }, { passive: false });
    draw();
    return (group) => { only = group; draw(); };
  }

  function maps() {
    const redraws = all("#map .map").map(map);
    const entries = all("#map .key-list li");
    entries.forEach((entry, group) => {
      const press = make("button", { type: "button", "aria-pressed": "false" }, ...entry.childNodes);
      press.addEventListener("click", () => {
        const on = press.getAttribute("aria-pressed") === "false";
        for (const other of all("#map .key-list button")) other.setAttribute("aria-pressed", String(on && other === press));
        for (const redraw of redraws) redraw(on ? group : -1);
      });
      entry.append(press);
    });
  }

  document.documentElement.classList.add("scripted");
  enlargements();
  maps();
})();
