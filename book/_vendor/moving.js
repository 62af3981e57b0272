/* Redraws the figures that mmlib.moving has put on a page, when a reader moves one of their controls.

   A figure carries its numbers as JSON, a picture and a table of the state at the start. The axes stay; what is drawn
   on them and what is said in text is looked up. Nothing is computed here and nothing is animated. */

(() => {
  "use strict";

  const ACROSS = 284, DOWN = 146, BEYOND = 50; // as in mmlib.moving

  // An array at the present state of its controls; of the control `along`, if it is named, the whole axis.
  const pick = (values, over, state, along) => {
    if (!over.length) return values;
    const [control, ...rest] = over;
    return control === along
      ? values.map((part) => pick(part, rest, state, along))
      : pick(values[state[control]], rest, state, along);
  };

  const look = (data, name, state, along = "") => {
    if (name in data.controls) return pick(data.controls[name], [name], state, along);
    const array = data.arrays[name];
    const value = pick(array.values, array.over, state, along);
    return array.words ? array.words[value] : value;
  };

  const superscript = (power) => "10" + String(power).replace(/[-0-9]/g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);

  // As mmlib.moving.shown writes them; 0 digits are for words and whole numbers, which JSON does not tell from others.
  const shown = (value, digits, decimals) => {
    if (!digits || value === 0) return String(value);
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    const power = Number(exponent);
    const places = Math.min(digits - 1 - power, decimals);
    const text = power >= -3 && power < 4
      ? Number(`${mantissa}e${power}`).toFixed(Math.max(0, places))
      : `${Number(mantissa).toFixed(Math.max(0, places + power))} × ${superscript(power)}`;
    return text.replace("-", "−");
  };

  const place = ([low, high, log], length, value) => {
    const of = log ? (x) => Math.log10(Math.max(x, 1e-300)) : (x) => x;
    return Math.min(Math.max(((of(value) - of(low)) / (of(high) - of(low))) * length, -BEYOND), length + BEYOND);
  };

  const path = (kind, x, y, panel) => {
    const list = (value) => (Array.isArray(value) ? value : [value]);
    [x, y] = [list(x), list(y)];
    if (kind === "stairs") {
      const twice = y.flatMap((value) => [value, value]);
      [x, y] = [twice.slice(0, -1), [twice[0], ...twice.slice(2)]];
    }
    const [low, high, log] = panel.y;
    const across = x.map((value) => place(panel.x, ACROSS, value));
    const down = y.map((value) => place([high, low, log], DOWN, value));
    const at = (...numbers) => numbers.map((number) => number.toFixed(1)).join(" ");
    if (kind === "across") return `M ${at(0, down[0])} L ${at(ACROSS, down[0])}`;
    if (kind === "up") return `M ${at(across[0], 0)} L ${at(across[0], DOWN)}`;
    if (kind === "points") return across.map((a, k) => `M ${at(a, down[k])} h 0.01`).join(" ");
    if (kind === "bars") {
      const half = 0.45 * Math.abs(across[1] - across[0]);
      return across.map((a, k) => {
        const [left, right] = [a - half, a + half];
        return `M ${at(left, DOWN)} L ${at(left, down[k])} L ${at(right, down[k])} L ${at(right, DOWN)} Z`;
      }).join(" ");
    }
    return "M " + across.map((a, k) => at(a, down[k])).join(" L ");
  };

  const draw = (figure, data, state) => {
    figure.querySelectorAll(".moving-drawn").forEach((drawn, p) => {
      data.panels[p].marks.forEach(([kind, x, y, along], k) => {
        const [xs, ys] = [x, y].map((name) => look(data, name, state, along));
        drawn.children[k].setAttribute("d", path(kind, xs, ys, data.panels[p]));
      });
    });
    figure.querySelectorAll(".moving-numbers b").forEach((said, k) => {
      const [name, unit, digits, decimals] = data.numbers[k];
      said.textContent = `${shown(look(data, name, state), digits, decimals)} ${unit}`.trim();
    });
  };

  const start = (figure) => {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const state = {};
    for (const control of figure.querySelectorAll("[data-control]")) {
      const read = () => {
        const position = control.tagName === "SELECT" ? control.selectedIndex : Number(control.value);
        state[control.dataset.control] = position;
        if (control.dataset.names) {
          const name = control.dataset.names.split("|")[position];
          control.setAttribute("aria-valuetext", name);
          control.nextElementSibling.textContent = name;
        }
      };
      read(); // a browser may have kept a position from before
      control.addEventListener("input", () => {
        read();
        draw(figure, data, state);
      });
    }
    draw(figure, data, state);
  };

  // The blind game: one hidden fault, checks at their price, a name for it.
  const play = (figure) => {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const [patient, name] = figure.querySelectorAll("select");
    const checks = [...figure.querySelectorAll("[data-check]")];
    const said = figure.querySelector(".moving-numbers");
    let bought = [];

    const tell = (verdict = "") => {
      const cost = bought.reduce((sum, k) => sum + data.checks[k].cost, 0);
      said.textContent = `${bought.length} of ${checks.length} checks bought, ${cost.toLocaleString("en")} ${data.unit}. ${verdict}`.trim();
    };
    const fresh = () => {
      bought = [];
      for (const check of checks) {
        check.querySelector("button").removeAttribute("aria-disabled");
        check.querySelector(".moving-result").textContent = "";
      }
      tell();
    };
    checks.forEach((check, k) => check.querySelector("button").addEventListener("click", (event) => {
      if (bought.includes(k)) return;
      bought.push(k);
      check.querySelector(".moving-result").textContent = data.checks[k].results[patient.selectedIndex];
      // Not `disabled`: the focus would be lost, and with it the place of who uses the keyboard.
      event.currentTarget.setAttribute("aria-disabled", "true");
      tell();
    }));
    figure.querySelector(".moving-answer").addEventListener("click", () => {
      const truth = data.faults[data.hidden[patient.selectedIndex]];
      const right = name.selectedIndex === data.hidden[patient.selectedIndex];
      tell(`${right ? "Right" : "No"}: ${right ? truth.why : truth.hint}`);
    });
    patient.addEventListener("change", fresh);
    fresh();
  };

  const all = () => {
    const ids = new Set();
    for (const figure of document.querySelectorAll("figure.moving")) {
      if (ids.has(figure.id)) figure.removeAttribute("id"); // the same figure twice on a page
      ids.add(figure.id);
      figure.querySelectorAll(".moving-controls").forEach((part) => part.removeAttribute("hidden"));
      figure.querySelectorAll(".moving-table").forEach((part) => part.removeAttribute("open"));
      (figure.classList.contains("moving-game") ? play : start)(figure);
    }
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", all);
  else all();
})();
