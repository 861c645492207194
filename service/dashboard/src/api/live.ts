// What changed, as it changes: one connection for the whole tab, however many things its page watches.
import { signal } from "@preact/signals";

/** Whether the connection stands. */
export const connected = signal(false);

type Callback = () => void;
const watchers = new Map<string, Set<Callback>>();
let socket: WebSocket | null = null;
let attempts = 0;
let timer: ReturnType<typeof setTimeout> | undefined;

/** Calls back whenever one of these topics changed, and after each time that the connection was lost. */
export function watch(topics: readonly string[], callback: Callback): () => void {
  const added = topics.filter((topic) => !watchers.has(topic));
  for (const topic of topics) {
    const set = watchers.get(topic) ?? new Set();
    set.add(callback);
    watchers.set(topic, set);
  }
  if (added.length) send();
  connect();
  return () => {
    let gone = false;
    for (const topic of topics) {
      const set = watchers.get(topic);
      set?.delete(callback);
      if (set?.size === 0) {
        watchers.delete(topic);
        gone = true;
      }
    }
    if (gone) send();
  };
}

function send(): void {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ watch: [...watchers.keys()] }));
}

function connect(): void {
  if (socket || timer !== undefined || typeof WebSocket === "undefined") return;
  const made = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/v1/live`);
  socket = made;
  made.onopen = () => {
    connected.value = true;
    send();
    if (attempts > 0) everything();
    attempts = 0;
  };
  made.onmessage = (message) => {
    const said = JSON.parse(String(message.data)) as { changed?: string[] };
    const due = new Set<Callback>();
    for (const topic of said.changed ?? []) for (const callback of watchers.get(topic) ?? []) due.add(callback);
    for (const callback of due) callback();
  };
  made.onclose = () => {
    connected.value = false;
    socket = null;
    attempts += 1;
    timer = setTimeout(again, delay(attempts));
  };
}

function again(): void {
  timer = undefined;
  if (watchers.size) {
    everything(); // pages recover by asking, also while there is no connection
    connect();
  }
}

/** Milliseconds until the next try: half a second at first, then longer, never more than 5 s. */
export function delay(attempt: number): number {
  return Math.min(5000, 250 * 2 ** Math.min(attempt, 6)) * (0.75 + Math.random() / 2);
}

function everything(): void {
  for (const callback of new Set([...watchers.values()].flatMap((set) => [...set]))) callback();
}

/** Opens the connection anew, as after signing in. */
export function reconnect(): void {
  clearTimeout(timer);
  timer = undefined;
  if (socket) socket.close();
  else connect();
}
