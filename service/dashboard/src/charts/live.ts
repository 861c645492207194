// The curves of one run: fetched at the resolution of the screen, zoomed by fetching anew, grown by what came since.
import { type Signal, signal } from "@preact/signals";
import { api, need, type Schemas } from "../api/client";
import type { Axis } from "./chart";
import { append } from "./series";

export type SeriesData = Schemas["SeriesData"];
const WIDTH = 700;

export class RunSeries {
  readonly data: Signal<SeriesData | null> = signal(null);
  private busy = false;
  private again = false;

  constructor(
    private readonly job: string,
    private readonly name: string,
    private readonly axis: Axis,
    private readonly zoom: readonly [number, number] | null,
    private readonly width: number = WIDTH,
  ) {}

  /** Fetches what is new: points behind the cursor, or everything when there is none or the raw points grew too many. */
  async refresh(): Promise<void> {
    if (this.busy) {
      this.again = true;
      return;
    }
    this.busy = true;
    try {
      const have = this.data.peek();
      const grown = have !== null && this.zoom === null && have.x.length < 3 * this.width;
      const got = await need(
        api.GET("/api/v1/jobs/{ref}/series", {
          params: {
            path: { ref: this.job },
            query: { name: this.name, axis: this.axis, width: this.width, times: this.width === WIDTH, from: this.zoom?.[0], to: this.zoom?.[1], after: grown ? have.cursor : undefined },
          },
        }),
      );
      if (grown && got.delta) {
        if (got.x.length || got.cursor !== have.cursor) this.data.value = { ...got, ...append(have, got), times: [...(have.times ?? []), ...(got.times ?? [])], marks: [...have.marks, ...got.marks] };
      } else this.data.value = got;
    } finally {
      this.busy = false;
      if (this.again) {
        this.again = false;
        void this.refresh();
      }
    }
  }
}
