// Makes a page live. The page's stream says that something changed. The page is then read again, and its parts with data-live are replaced.
"use strict";
(() => {
  const LIT = 1500;
  const lit = new Map();
  let reading = false;
  let waiting = false;

  async function refresh() {
    if (reading) {
      waiting = true;
      return;
    }
    reading = true;
    waiting = false;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (answer.ok) replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The next message of the stream tries again.
    }
    reading = false;
    if (waiting) refresh();
  }

  function replace(page) {
    for (const old of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(old.id);
      const focused = old.contains(document.activeElement) ? document.activeElement : null;
      if (!fresh || fresh.isEqualNode(old) || focused?.matches("input, select, textarea")) continue;
      const pulses = new Map(Array.from(old.querySelectorAll("[data-pulse]"), (one) => [one.id, one.dataset.pulse]));
      const open = Array.from(old.querySelectorAll("details[open][id]"), (one) => one.id);
      const ticks = new Map(Array.from(old.querySelectorAll("input[type=checkbox]"), (one) => [one.value, one.checked]));
      old.replaceChildren(...fresh.childNodes);
      for (const one of old.querySelectorAll("input[type=checkbox]")) one.checked = ticks.get(one.value) ?? one.checked;
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      for (const one of old.querySelectorAll("[data-pulse]")) light(one, pulses.get(one.id));
      if (focused?.id) document.getElementById(focused.id)?.focus({ preventScroll: true });
    }
  }

  // Lights a card up if its pulse changed, or continues if it shines already.
  function light(card, before) {
    const now = performance.now();
    if (before !== undefined && before !== card.dataset.pulse) lit.set(card.id, now);
    const since = now - (lit.get(card.id) ?? -LIT);
    if (since >= LIT) return;
    card.classList.add("lit");
    card.style.animationDelay = `${-since}ms`;
  }

  // A hidden page does not follow. A browser allows six connections to a server at a time, and each stream is one.
  const stream = document.documentElement.dataset.stream;
  let source = null;
  function follow() {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (stream && !source) {
      source = new EventSource(stream);
      source.onmessage = refresh;
    }
  }
  document.addEventListener("visibilitychange", follow);
  follow();

  // A form with data-slide shows its answer while it is changed.
  document.addEventListener("input", (event) => {
    const form = event.target.form;
    if (!form?.matches("[data-slide]")) return;
    history.replaceState(null, "", `${form.getAttribute("action")}?${new URLSearchParams(new FormData(form))}`);
    refresh();
  });
})();
