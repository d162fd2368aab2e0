// The server's events. They are read with `fetch`: an EventSource can't send a token in a
// header, and a token in an address would end up in histories and logs. The content type says that
// no other page asks: for it, the browser would have to ask the node first.

/// How long nothing may come before the node counts as gone, in milliseconds.
const SILENCE_MS = 5_000;

/// How long is waited before the next attempt, at first and at most.
const RETRY_MS = [250, 5_000];

/// Reads events for as long as the page is open. `on` has a function for each event by its
/// name, and `opened`, `lost` (with why) and `refused` (the token is wrong). `address` and
/// `headers` are asked for at each attempt.
export function follow(address, headers, on) {
  let current = null;
  let retry = RETRY_MS[0];
  let wake = () => {};

  async function attempt() {
    const abort = new AbortController();
    current = abort;
    let guard = 0;
    const heard = () => {
      clearTimeout(guard);
      guard = setTimeout(() => abort.abort(new Error("nothing was heard")), SILENCE_MS);
    };
    heard();
    try {
      const response = await fetch(address(), { headers: { "content-type": "application/json", ...headers() }, cache: "no-store", signal: abort.signal });
      if (response.status === 401) {
        on.refused();
        return;
      }
      if (!response.ok) throw new Error((await response.text()).trim() || `status ${response.status}`);
      on.opened();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        heard();
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) dispatch(event, on);
        retry = RETRY_MS[0];
      }
    } finally {
      clearTimeout(guard);
    }
  }

  (async () => {
    for (;;) {
      let failed = null;
      try {
        await attempt();
      } catch (error) {
        failed = error;
      }
      if (failed) {
        on.lost(failed.message);
        await new Promise((resolve) => {
          wake = resolve;
          setTimeout(resolve, retry);
        });
        retry = Math.min(retry * 2, RETRY_MS[1]);
      }
    }
  })();

  // Begins anew, as with another token.
  return () => {
    retry = RETRY_MS[0];
    current?.abort(new Error("begun anew"));
    wake();
  };
}

/// One event: `event: NAME` and `data: JSON`.
export function dispatch(event, on) {
  let name = "";
  let data = "";
  for (const line of event.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data = line.slice(6);
  }
  if (Object.hasOwn(on, name) && data) on[name](JSON.parse(data));
}
