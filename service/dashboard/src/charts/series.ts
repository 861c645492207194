// What is done to a curve between the API and the screen. Pure functions; the raw curve is always kept beside a view of it.

/** One metric of one run: x ascending; y is null where the value was NaN or infinite. */
export interface Curve {
  x: number[];
  y: (number | null)[];
}

/**
 * Exponential moving average, corrected for its start (as Adam's moments are): `weight` in [0, 1), 0 changes nothing.
 * Gaps stay gaps and don't reset the average.
 */
export function smooth(values: readonly (number | null)[], weight: number): (number | null)[] {
  if (weight <= 0) return [...values];
  let mean = 0;
  let scale = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    scale = weight * scale + (1 - weight);
    return mean / scale;
  });
}

/** The range that holds all but the farthest `share` of the values at each end: what "without outliers" shows. */
export function range(values: readonly (number | null)[], share: number): [number, number] | null {
  const sorted = values.filter((value): value is number => value !== null).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  const cut = Math.floor(sorted.length * share);
  return [sorted[cut]!, sorted[sorted.length - 1 - cut]!];
}

/**
 * Puts new points behind those that are there: what is not behind the last x (a resumed run repeats steps) replaces
 * what stood there from that x on.
 */
export function append(curve: Curve, more: Curve): Curve {
  if (more.x.length === 0) return curve;
  const first = more.x[0]!;
  let keep = curve.x.length;
  while (keep > 0 && curve.x[keep - 1]! >= first) keep -= 1;
  return { x: [...curve.x.slice(0, keep), ...more.x], y: [...curve.y.slice(0, keep), ...more.y] };
}

/** Several curves over one ascending axis, with null where a curve has no point: the table that uPlot draws. */
export function align(curves: readonly Curve[]): [number[], ...(number | null | undefined)[][]] {
  if (curves.length === 1) return [curves[0]!.x, curves[0]!.y];
  const axis = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  const at = new Map(axis.map((x, index) => [x, index]));
  const columns = curves.map((curve) => {
    const column = new Array<number | null | undefined>(axis.length).fill(undefined);
    curve.x.forEach((x, index) => (column[at.get(x)!] = curve.y[index] ?? null));
    return column;
  });
  return [axis, ...columns];
}

/** Mean and standard deviation of several curves where at least one of them has a value, on the union of their axes. */
export function band(curves: readonly Curve[]): { x: number[]; mean: (number | null)[]; std: number[] } {
  const axis = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  const mean: (number | null)[] = [];
  const std: number[] = [];
  const cursor = curves.map(() => 0);
  for (const x of axis) {
    const values: number[] = [];
    curves.forEach((curve, index) => {
      const value = interpolate(curve, x, cursor, index);
      if (value !== null) values.push(value);
    });
    const middle = values.reduce((sum, value) => sum + value, 0) / values.length;
    mean.push(values.length ? middle : null);
    std.push(values.length > 1 ? Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1)) : 0);
  }
  return { x: axis, mean, std };
}

function interpolate(curve: Curve, x: number, cursor: number[], index: number): number | null {
  const { x: xs, y: ys } = curve;
  if (xs.length === 0 || x < xs[0]! || x > xs[xs.length - 1]!) return null;
  let at = cursor[index]!;
  while (at < xs.length - 1 && xs[at + 1]! <= x) at += 1;
  cursor[index] = at;
  const left = ys[at] ?? null;
  if (xs[at] === x || at === xs.length - 1) return left;
  const right = ys[at + 1] ?? null;
  if (left === null || right === null) return left ?? right;
  return left + ((right - left) * (x - xs[at]!)) / (xs[at + 1]! - xs[at]!);
}

/** Smallest, largest and last value of a curve. */
export function extremes(values: readonly (number | null)[]): { min: number | null; max: number | null; last: number | null } {
  let min: number | null = null;
  let max: number | null = null;
  let last: number | null = null;
  for (const value of values) {
    if (value === null) continue;
    if (min === null || value < min) min = value;
    if (max === null || value > max) max = value;
    last = value;
  }
  return { min, max, last };
}

/** Ten colours that can be told apart on light and dark, also by people who see red and green alike. */
export const COLOURS = ["#3b82d6", "#d9730d", "#2f9e63", "#c2447f", "#7c62d3", "#1f9aa8", "#b58a00", "#d0473f", "#6b7d90", "#8a6242"];
