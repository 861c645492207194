import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { align, append, band, extremes, range, smooth } from "../src/charts/series";

const values = fc.array(fc.option(fc.double({ min: -1e6, max: 1e6, noNaN: true }), { nil: null }), { maxLength: 50 });

describe("smooth", () => {
  it("changes nothing without weight", () => {
    fc.assert(fc.property(values, (y) => { expect(smooth(y, 0)).toEqual(y); }));
  });
  it("keeps a constant curve, from its first point on", () => {
    for (const value of smooth([3, 3, null, 3], 0.9)) expect(value === null || Math.abs(value - 3) < 1e-12).toBe(true);
  });
  it("leaves gaps where they are and stays within the curve's extremes", () => {
    fc.assert(
      fc.property(values, fc.double({ min: 0, max: 0.99, noNaN: true }), (y, weight) => {
        const smoothed = smooth(y, weight);
        const { min, max } = extremes(y);
        smoothed.forEach((value, index) => {
          expect(value === null).toBe(y[index] === null);
          if (value !== null) {
            const slack = 1e-9 * (1 + Math.abs(min!) + Math.abs(max!));
            expect(value).toBeGreaterThanOrEqual(min! - slack);
            expect(value).toBeLessThanOrEqual(max! + slack);
          }
        });
      }),
    );
  });
});

describe("append", () => {
  it("puts new points behind the old ones", () => {
    expect(append({ x: [1, 2], y: [10, 20] }, { x: [3], y: [30] })).toEqual({ x: [1, 2, 3], y: [10, 20, 30] });
  });
  it("replaces what a resumed run repeats", () => {
    expect(append({ x: [1, 2, 3], y: [10, 20, 30] }, { x: [2, 3], y: [21, 31] })).toEqual({ x: [1, 2, 3], y: [10, 21, 31] });
  });
  it("is one curve with an ascending axis, however it is cut into pieces", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(5), { minLength: 1, maxLength: 8 }), (sizes) => {
        let curve = { x: [] as number[], y: [] as (number | null)[] };
        let next = 0;
        for (const size of sizes) {
          const x = Array.from({ length: size }, () => next++);
          curve = append(curve, { x, y: x.map((value) => value * 2) });
        }
        expect(curve.x).toEqual([...Array(next).keys()]);
      }),
    );
  });
});

it("aligns curves on the union of their axes, with holes where one has no point", () => {
  expect(align([{ x: [1, 3], y: [10, null] }, { x: [2, 3], y: [5, 6] }])).toEqual([[1, 2, 3], [10, undefined, null], [undefined, 5, 6]]);
});

describe("band", () => {
  it("is the mean and the sample deviation where all runs have points", () => {
    const { x, mean, std } = band([{ x: [0, 1], y: [1, 2] }, { x: [0, 1], y: [3, 6] }]);
    expect(x).toEqual([0, 1]);
    expect(mean).toEqual([2, 4]);
    expect(std[0]).toBeCloseTo(Math.SQRT2);
    expect(std[1]).toBeCloseTo(2 * Math.SQRT2);
  });
  it("interpolates between a run's points and never beyond its ends", () => {
    const { mean } = band([{ x: [0, 2], y: [0, 2] }, { x: [1], y: [3] }]);
    expect(mean).toEqual([0, 2, 2]);
  });
});

it("finds the range without the farthest values", () => {
  const y = [...Array(100).keys(), 1e9];
  expect(range(y, 0.01)).toEqual([1, 99]);
  expect(range([null], 0.01)).toBeNull();
});
