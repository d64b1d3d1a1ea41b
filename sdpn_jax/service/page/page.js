// Starts the page: what the service is, its token, and the tabs.

import { ask, hasToken, TOKEN_NEEDED, useToken } from "./api.js";
import { hush, noMicrophone } from "./audio.js";
import { byId, score } from "./elements.js";
import { startLive } from "./live.js";
import { startSame } from "./same.js";
import { startWhen } from "./when.js";
import { startWho } from "./who.js";

const HERE = ["localhost", "127.0.0.1", "[::1]"];

async function start() {
  const health = await ask("GET", "/health");
  tell(health);
  startSame(health.limits);
  const refresh = startWho(health.limits, health.limits.recordings);
  startLive();
  startWhen(health.limits);
  startTabs();
  byId("main").hidden = false;
  startToken(refresh);
  if (health.token && !hasToken()) askForToken();
  else refresh();
}

/** What this is, and what becomes of recordings. */
function tell(health) {
  const where = HERE.includes(location.hostname) ? "Everything stays on this machine: recordings" : "Recordings";
  const kept =
    health.kept === "memory"
      ? "in the memory of the service, gone when that ends"
      : `in ${health.kept} on the service's machine, until you delete them`;
  byId("privacy").textContent =
    `${where} are sent to ${location.host} only, embedded, and forgotten. Stored are, for each enrolled voice, ` +
    `its name and ${health.embedding_size} numbers: ${kept}.`;
  const threshold = health.threshold === null ? "no threshold" : `threshold ${score(health.threshold)}`;
  const calibration = health.calibrated ? "calibrated" : "not calibrated, so there are no probabilities";
  byId("about-model").textContent = `Model ${health.model.slice(0, 12)}; ${threshold}; ${calibration}.`;
  byId("no-microphone").textContent = noMicrophone() ?? "";
  byId("no-microphone").hidden = noMicrophone() === null;
}

function startToken(refresh) {
  byId("token").addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(byId("token-field").value);
    byId("token").reset();
    byId("token").hidden = true;
    byId("main").focus();
    refresh();
  });
  window.addEventListener(TOKEN_NEEDED, askForToken);
}

function askForToken() {
  byId("token").hidden = false;
  byId("token-field").focus();
}

/** Tabs as ARIA has them: one stop for the tab key, arrow keys between them; the address remembers which. */
function startTabs() {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const panelOf = (tab) => byId(tab.getAttribute("aria-controls"));
  const named = () => tabs.find((tab) => `#${panelOf(tab).id}` === location.hash);

  function show(chosen) {
    hush(); // nothing listens unseen
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      panelOf(tab).hidden = tab !== chosen;
    }
  }

  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => {
      history.replaceState(null, "", `#${panelOf(tab).id}`);
      show(tab);
    });
    tab.addEventListener("keydown", (event) => {
      const goals = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: -1 };
      if (!(event.key in goals)) return;
      event.preventDefault();
      const goal = tabs.at(goals[event.key] % tabs.length);
      goal.focus();
      goal.click();
    });
  });
  window.addEventListener("hashchange", () => named() && show(named()));
  show(named() ?? tabs[0]);
}

// A file dropped beside a slot would replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
window.addEventListener("pagehide", hush);

start().catch((error) => {
  byId("trouble").textContent = error.message;
});
