import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { folded, level, matcher, pieces } from "../src/log/text";

const plain = (line: string) => pieces(line).map((piece) => piece.text).join("");

describe("pieces", () => {
  it("gives colours and leaves their codes out", () => {
    expect(pieces("a \u001b[1;31mbad\u001b[0m b")).toEqual([
      { text: "a ", style: "" },
      { text: "bad", style: "ansi-bold ansi-31" },
      { text: " b", style: "" },
    ]);
  });
  it("leaves out whatever else a terminal would obey", () => {
    expect(plain("x\u001b]52;c;aGk=\u0007y\u001b[2J\u001b[?25lz\u0000\u0008")).toBe("xyz");
    expect(plain("\u001b]8;;http://evil\u001b\\link\u001b]8;;\u001b\\")).toBe("link");
  });
  it("never lets a control character through", () => {
    fc.assert(fc.property(fc.string({ unit: "binary" }), (line) => { expect(plain(line)).not.toMatch(/[\u0000-\u0008\u000b-\u001f\u007f]/); }));
  });
  it("keeps every other character", () => {
    fc.assert(fc.property(fc.string(), (line) => { expect(plain(line)).toBe(line); }));
  });
});

it("folds a progress bar to its last state", () => {
  expect(folded("1%\r50%\r100%")).toBe("100%");
  expect(folded("1%\r50%\r")).toBe("50%");
  expect(folded("no bar")).toBe("no bar");
});

it("tells errors and warnings by their words", () => {
  expect(level("RuntimeError: CUDA error: out of memory")).toBe("error");
  expect(level("Traceback (most recent call last):")).toBe("error");
  expect(level("FutureWarning: deprecated")).toBe("warning");
  expect(level("step 5 loss 0.3")).toBe("");
});

it("takes plain text literally and says when a regular expression is none", () => {
  expect(matcher("a.b(", false)!.test("xA.B(y")).toBe(true);
  expect(matcher("a.b(", false)!.test("aXb(")).toBe(false);
  expect(matcher("(", true)).toBeNull();
});
