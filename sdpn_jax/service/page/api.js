// Questions to the service that served this page, and to nobody else.

const KEY = "token"; // in sessionStorage, which forgets when the tab is closed

export const TOKEN_NEEDED = "token-needed";

export function useToken(token) {
  sessionStorage.setItem(KEY, token);
}

export const hasToken = () => sessionStorage.getItem(KEY) !== null;

/** What the service answers; an Error with one line for people where it refuses or is not there. */
export async function ask(method, path, body) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { method, headers, body }).catch(() => {
    throw new Error("The service does not answer. Is it still running?");
  });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) {
    sessionStorage.removeItem(KEY);
    window.dispatchEvent(new Event(TOKEN_NEEDED));
  }
  throw new Error(answer.error?.message ?? `The service answered ${response.status}.`);
}

/** A form of recordings, each under its name: [["a", recording], ...]. */
export function formOf(recordings) {
  const form = new FormData();
  for (const [field, recording] of recordings) form.append(field, recording.blob, recording.name);
  return form;
}
