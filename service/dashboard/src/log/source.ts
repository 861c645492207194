// The lines of a log by their numbers, fetched in blocks as they are looked at; a few blocks are kept.
import { type Signal, signal } from "@preact/signals";
import { api, need } from "../api/client";

export interface Line {
  time: number;
  attempt: number;
  replica: number;
  text: string;
  /** Bytes of the whole line when `text` is only its beginning. */
  length?: number | null | undefined;
}

export interface Part {
  attempt: number | null;
  replica: number | null;
}

const BLOCK = 200;
const KEPT = 60;

export class Source {
  readonly total: Signal<number> = signal(0);
  /** Counts up when a block arrives, so that what shows lines looks again. */
  readonly version: Signal<number> = signal(0);
  readonly loaded: Signal<boolean> = signal(false);
  private blocks = new Map<number, Line[]>();
  private asked = new Set<number>();

  constructor(
    private readonly job: string,
    private readonly part: Part,
  ) {}

  /** The line of a number; undefined while it is being fetched. */
  line(number: number): Line | undefined {
    const index = Math.floor(number / BLOCK);
    const block = this.blocks.get(index);
    const found = block?.[number - index * BLOCK];
    if (found === undefined && number < this.total.peek()) void this.fetch(index);
    return found;
  }

  /** Looks how many lines there are now; the last block, which may have grown, is fetched again. */
  async refresh(): Promise<void> {
    const last = Math.max(0, Math.floor((this.total.peek() - 1) / BLOCK));
    await this.fetch(last, true);
    this.loaded.value = true;
  }

  private async fetch(index: number, again = false): Promise<void> {
    if (this.asked.has(index) && !again) return;
    this.asked.add(index);
    try {
      const page = await need(
        api.GET("/api/v1/jobs/{ref}/lines", {
          params: { path: { ref: this.job }, query: { first: index * BLOCK, count: BLOCK, attempt: this.part.attempt, replica: this.part.replica } },
        }),
      );
      this.blocks.delete(index);
      this.blocks.set(index, page.items);
      for (const old of this.blocks.keys()) {
        if (this.blocks.size <= KEPT) break;
        if (old !== index) this.blocks.delete(old);
      }
      this.total.value = page.total;
      this.version.value += 1;
    } finally {
      this.asked.delete(index);
    }
  }

  /** The number of the first line that was printed at a moment or later. */
  async at(seconds: number): Promise<number> {
    const page = await need(
      api.GET("/api/v1/jobs/{ref}/lines", {
        params: { path: { ref: this.job }, query: { at: seconds, count: 1, attempt: this.part.attempt, replica: this.part.replica } },
      }),
    );
    return page.first;
  }

  /** The number of the next line after (or with `back` before) `from` that matches; null when there is none. */
  async search(query: string, regex: boolean, from: number, back: boolean): Promise<number | null> {
    const found = await need(
      api.GET("/api/v1/jobs/{ref}/search", {
        params: { path: { ref: this.job }, query: { q: query, regex, first: from, back, attempt: this.part.attempt, replica: this.part.replica } },
      }),
    );
    return found.line ?? null;
  }
}
