"""Operations of fused.py as the text of CUDA kernels: one thread block for each of their blocks.

The text has ratio.h and device.h in it, so any compiler of CUDA takes it as it is, without fused
multiply-adds. A launch is numbered, and where an element refuses, it leaves everything as it was
without asking the host: a tile (a block of elements) writes its integers at its end, if it has no
such element, and `finish` takes back the tiles that were done, by the inverse operations.

    forwards:   run, line_up (each buffer), finish: words are put down in order, or tiles taken back
    backwards:  count, line_up (each buffer), run, finish: words are off the stack, or as before

`run` leaves the words of a tile in a place of its own, from which `finish` moves them to the stack,
and from which the inverse pops. Which head pops is known before anything is undone, but for one
head in a million: there `count` goes through what comes before, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from revgrad._ext.fused import (
    ADD,
    CONSTANT,
    COPY,
    DECODE,
    DOUBLES,
    EMIT,
    EQUAL,
    FLOATS,
    GREATER,
    LESS,
    MAGNITUDE,
    MINUS,
    NARROW,
    NEGATE,
    OVER,
    PLUS,
    REGISTER,
    ROOT,
    SAFE_ROOT,
    SCALE,
    SIGN,
    SUBTRACT,
    SUM,
    TIMES,
    UNSCALE,
    WHERE,
    WIDEN,
    NotFusible,
)  # fmt: skip

TILE, THREADS, SUMS = 1024, 256, 4  # as in device.h

VALUES = {
    PLUS: "{a} + {b}", MINUS: "{a} - {b}", TIMES: "{a} * {b}", OVER: "{a} / {b}",
    GREATER: "{a} > {b} ? 1.0 : 0.0", LESS: "{a} < {b} ? 1.0 : 0.0",
    EQUAL: "{a} == {b} ? 1.0 : 0.0", NEGATE: "-({a})", ROOT: "sqrt({a})",
    SAFE_ROOT: "sqrt({a}) + 0.0", MAGNITUDE: "fabs({a})",
    SIGN: "{a} > 0 ? 1.0 : {a} < 0 ? -1.0 : {a} == 0 ? 0.0 : {a}", WHERE: "{a} != 0 ? {b} : {c}",
    COPY: "{a}", WIDEN: "{a}", NARROW: "{a}",
}  # fmt: skip
SIDES = {ADD: 1, SUBTRACT: -1}
NUMBERS = {"int64_t": "int64", "uint64_t": "uint64", "double": "float64"}


@dataclass(frozen=True)
class Form:
    """What the text of a kernel depends on, from a Plan and the numbers it is given.

    rows: the plan's operations. kinds: of its slots. many: per slot, whether a constant has one
    value per segment. columns: per buffer, whether its ratios come as columns, and not as one.
    """

    rows: tuple[tuple[int, ...], ...]
    kinds: tuple[int, ...]
    many: tuple[bool, ...]
    columns: tuple[bool, ...]
    sums: int
    backwards: bool


@cache
def prelude() -> str:
    """What comes before every kernel."""
    folder = Path(__file__).parent
    return "".join((folder / name).read_text(encoding="utf-8") for name in ("ratio.h", "device.h"))


@cache
def text_of(form: Form, inverse: Form | None) -> tuple[str, dict[str, list[str]]]:
    """(The text, kernel -> names of its parameters); what is of the inverse begins with "u".

    inverse: needed where something can refuse. rows must have passed `check`.
    """
    main, parts = _Writer(form, ""), {}
    parts["run"] = main.run()
    pops = [row for row in form.rows if row[0] == UNSCALE]
    if pops:
        parts["count"] = main.count(pops)
    if inverse is not None:
        parts["finish"] = _finish(main, _Writer(inverse, "u"))
    text = [prelude()]
    for name, (types, body) in parts.items():
        listed = ", ".join(f"{kind} {p}" for p, kind in types.items())
        lines = "\n".join(f"    {line}" for line in body)
        head = f'extern "C" __global__ void __launch_bounds__(THREADS) {name}({listed})'
        text.append(f"\n{head}\n{{\n{lines}\n}}\n")
    return "".join(text), {name: [*types] for name, (types, _) in parts.items()}


def check(rows: Sequence[Sequence[int]]) -> None:
    """Raises: NotFusible where which words are popped depends on words that are popped before."""
    for row in rows:
        if row[0] == UNSCALE:
            needed(rows, row)


def needed(rows: Sequence[Sequence[int]], last: Sequence[int]) -> list[tuple[int, Sequence[int]]]:
    """The operations before `last` that its target depends on, and their numbers."""
    variables, slots, kept = {last[5]}, set(), []
    for at, row in reversed([*enumerate(rows[: rows.index(last)])]):
        op, out, a, b, c, v, _ = row
        fills = op in (*VALUES, DECODE) and out in slots
        if op in (SCALE, UNSCALE) and v in variables:
            raise NotFusible("what decides how many words are popped depends on popped words")
        if not (fills or (op in SIDES and v in variables)):
            continue
        kept.append((at, row))
        slots |= {x for x in (a, b, c) if x >= 0}
        if op == DECODE:
            variables.add(v)
        elif op in SIDES and a < 0:
            variables.add(out)
    return kept[::-1]


def refused_at(code: int, rows: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(operation, element within its tile) of a code that a tile left."""
    operation, at = divmod(code, TILE)
    return operation, TILE - 1 - at if rows[operation][0] == UNSCALE else at


COMMON = {
    "starts": "const int64_t *", "segments": "const int32_t *", "status": "int64_t *",
    "serial": "int64_t", "refusals": "int32_t *", "counts": "int32_t *",
    "offsets": "const int64_t *", "bases": "const int64_t *",
}  # fmt: skip
TILE_LINES = [
    "const int64_t lo = starts[blockIdx.x];",
    "const int size = (int)(starts[blockIdx.x + 1] - lo), segment = segments[blockIdx.x];",
    "(void)segment;",
]


class _Writer:
    """One form's operations, as text; of: what its parameters' names begin with."""

    def __init__(self, form: Form, of: str) -> None:
        self.form, self.of = form, of
        self.types: dict[str, str] = {}

    # Parameters are noted as they are named.

    def _p(self, name: str, kind: str) -> str:
        self.types[name] = kind
        return name

    def _common(self, *names: str) -> None:
        for name in names:
            self._p(name, COMMON[name])

    def _variable(self, v: int) -> tuple[str, str, str]:
        return (
            self._p(f"x{v}", "int64_t *"), self._p(f"up{v}", "double"),
            self._p(f"ulp{v}", "double"),
        )  # fmt: skip

    def _divisors(self, b: int) -> list[str]:
        """Lines that make n and d of buffer b for element lo + j; one ratio comes prepared."""
        lines = []
        for name in "nd":
            if self.form.columns[b]:
                column = self._p(f"{self.of}{name}{b}", "const uint32_t *")
                step = self._p(f"{self.of}{name}{b}_step", "int64_t")
                by = self._p(f"{self.of}by_segment{b}", "int64_t")
                place = f"({by} ? segment : lo + j) * {step}"
                lines.append(f"const ratio_divisor {name} = ratio_divisor_once({column}[{place}]);")
            else:
                parts = [self._p(f"{self.of}{name}{b}{x}", "uint64_t") for x in ("", "_times")]
                shift = self._p(f"{self.of}{name}{b}_shift", "int64_t")
                lines.append(
                    f"const ratio_divisor {name} = {{{parts[0]}, {parts[1]}, (int){shift}}};"
                )
        return lines

    def _value(self, slot: int) -> str:
        kind = self.form.kinds[slot]
        if kind == CONSTANT:
            many = self.form.many[slot]
            name = self._p(f"{self.of}c{slot}", "const double *" if many else "double")
            return f"{name}[segment]" if many else name
        if kind == REGISTER:
            return f"s{slot}[k]"
        name = self._p(f"{self.of}a{slot}", "double *" if kind == DOUBLES else "float *")
        return f"{name}[lo + j]" if kind == DOUBLES else f"(double){name}[lo + j]"

    def _store(self, slot: int, value: str) -> str:
        kind = self.form.kinds[slot]
        if kind == FLOATS:
            return f"{self._p(f'{self.of}a{slot}', 'float *')}[lo + j] = (float)({value});"
        return f"{self._value(slot)} = {value};"

    # Operations.

    def _element(self, at: int, row: Sequence[int], dry: bool) -> list[str]:
        """Lines for one element that share nothing with other elements."""
        op, out, a, b, c, v, _ = row
        if op in VALUES:
            named = {n: self._value(x) for n, x in zip("abc", (a, b, c), strict=True) if x >= 0}
            return [self._store(out, VALUES[op].format(**named))]
        if op in (DECODE, EMIT):
            x, _, ulp = self._variable(v)
            return [self._store(out, f"(double)v{x}[k] * {ulp}")]
        if op == SUM:
            product = f" * {self._value(b)}" if b >= 0 else ""
            return [] if dry else [f"t{out}[k] = {self._value(a)}{product};"]
        if op in SIDES:
            return self._addition(at, row, dry)
        return self._scaling(at, row)

    def _addition(self, at: int, row: Sequence[int], dry: bool) -> list[str]:
        op, source, a, b, c, v, emitted = row
        x, up, ulp = self._variable(v)
        if a >= 0:
            read = self._value(a)
        else:
            other, _, its_ulp = self._variable(source)
            read = f"(double)v{other}[k] * {its_ulp}"
        factor = None
        if c >= 0:
            read = f"({read}) / {self._value(c)}"
        if b >= 0 and self.form.kinds[b] == CONSTANT:
            factor = self._value(b)
        elif b >= 0:
            read = f"({read}) * {self._value(b)}"
        read = f"({read}) * {factor}" if factor else read
        refused = f"if (bad && code > {at * TILE} + j) code = {at * TILE} + j;"
        lines = [
            "int64_t v = 0;",
            f"int bad = !fixed_encode({read}, {up}, &v);",
            f"bad |= !fixed_sum(v{x}[k], v, {SIDES[op]}, &v{x}[k]);",
            "(void)bad;" if dry else refused,
        ]
        if emitted >= 0 and not dry:
            lines.append(self._store(emitted, f"(double)v{x}[k] * {ulp}"))
        return lines

    def _scaling(self, at: int, row: Sequence[int]) -> list[str]:
        op, v, b = row[0], row[5], row[6]
        x, head = f"&v{self._variable(v)[0]}[k]", f"&h{self.of}{b}[k]"
        if op == SCALE:
            return [
                *self._divisors(b),
                "uint16_t word = 0;",
                f"m{b}[k] = (int)ratio_multiply({x}, {head}, n, d, &word, 0);",
                f"w{b}[k] = word;",
            ]
        code = f"{at * TILE + TILE - 1} - j"
        return [
            *self._divisors(b),
            f"const int64_t left = ratio_divide({x}, {head}, n, d, top{b} + p{b}[k], m{b}[k]);",
            f"if (left < 0 && code > {code}) code = {code};",
        ]

    def _ops(self, words: dict[int, str], dry: bool = False) -> Iterator[str]:
        """All operations on a tile; those between two that pop in one loop. words: of each buffer,
        where the words that this tile pops begin."""
        pending: list[str] = []
        for at, row in enumerate(self.form.rows):
            if row[0] == UNSCALE:
                yield from _loop(pending)
                pending = []
                yield from self._places(row, words[row[6]])
            pending += _scope(self._element(at, row, dry))
        yield from _loop(pending)

    def _places(self, row: Sequence[int], words: str) -> Iterator[str]:
        """Which elements pop, and at which place among the tile's words."""
        v, b = row[5], row[6]
        pops = f"m{b}[k] = ratio_pops(vx{v}[k], h{self.of}{b}[k], n, d);"
        yield from _loop(_scope([*self._divisors(b), pops]))
        yield from _ranks(b)
        yield f"const uint16_t *top{b} = {words};"

    def _state(self) -> tuple[list[str], list[str], list[str]]:
        """(Declarations, loads, stores) of what a tile holds of the state."""
        changed = {row[5] for row in self.form.rows if row[0] in (*SIDES, SCALE, UNSCALE)}
        read = {row[5] for row in self.form.rows if row[0] in (DECODE, EMIT)}
        read |= {row[1] for row in self.form.rows if row[0] in SIDES and row[2] < 0}
        scaled = [row[6] for row in self.form.rows if row[0] in (SCALE, UNSCALE)]
        lines, loads, stores = [], [], []
        for v in sorted(changed | read):
            x = self._variable(v)[0]
            lines.append(f"int64_t v{x}[PER];")
            loads.append(f"v{x}[k] = {x}[lo + j];")
            stores += [f"{x}[lo + j] = v{x}[k];"] * (v in changed)
        for b in scaled:
            heads = self._p(f"{self.of}heads{b}", "uint32_t *")
            lines.append(f"uint32_t h{self.of}{b}[PER];")
            lines.append(f"int m{b}[PER], p{b}[PER]; uint16_t w{b}[PER];")
            lines.append(f"__shared__ int g{b}[GROUPS + 1];")
            lines.append(f"(void)w{b}; (void)p{b};")
            loads.append(f"h{self.of}{b}[k] = {heads}[lo + j];")
            stores.append(f"{heads}[lo + j] = h{self.of}{b}[k];")
        filled = sorted({row[1] for row in self.form.rows if self._fills_register(row)})
        lines += [f"double s{slot}[PER];" for slot in filled]
        lines += [f"double t{k}[PER];" for k in range(self.form.sums)]
        return lines, loads, stores

    def _fills_register(self, row: Sequence[int]) -> bool:
        return row[0] in (*VALUES, DECODE) and self.form.kinds[row[1]] == REGISTER

    # Kernels: (types of parameters, lines).

    def run(self) -> tuple[dict[str, str], list[str]]:
        self._common("starts", "segments", "status", "serial", "refusals")
        stale = "if (status[0] && (status[0] != serial || status[1] == EMPTY)) return;"
        words = {}
        for row in self.form.rows:
            if row[0] == UNSCALE:
                self._common("offsets", "bases")
                stack, b = self._p(f"words{row[6]}", "const uint16_t *"), row[6]
                words[b] = f"{stack} + bases[{b}] + offsets[{b} * (int64_t)gridDim.x + blockIdx.x]"
        declared, loads, stores = self._state()
        ops = [*self._ops(words), *self._sum_lines()]
        lines = [stale, *TILE_LINES, "__shared__ int codes[THREADS];", "int code = GOOD;"]
        lines += [*declared, *_loop(loads), *ops]
        for row in self.form.rows:
            if row[0] == SCALE:
                lines += self._staged(row[6])
        lines += [
            "code = least_code(code, codes);",
            "if (!threadIdx.x) refusals[blockIdx.x] = code;",
            "if (code != GOOD) {",
            "    if (!threadIdx.x) { status[0] = serial; status[1] = REFUSED; }",
            "    return;",
            "}",
            *_loop(stores),
        ]
        return self.types, lines

    def _staged(self, b: int) -> Iterator[str]:
        """Put the words that a tile spilled in order, in its own place."""
        self._common("counts")
        staged = self._p(f"staged{b}", "uint16_t *")
        yield from _ranks(b)
        place = f"{staged}[blockIdx.x * (int64_t)TILE + p{b}[k]]"
        yield from _loop([f"if (m{b}[k]) {place} = w{b}[k];"])
        yield f"if (!threadIdx.x) counts[{b} * (int64_t)gridDim.x + blockIdx.x] = g{b}[GROUPS];"

    def _sum_lines(self) -> Iterator[str]:
        if not self.form.sums:
            return
        partials = self._p("partials", "double *")
        yield "__shared__ double terms[SUMS][TILE];"
        for first in range(0, self.form.sums, SUMS):
            some = range(first, min(first + SUMS, self.form.sums))
            yield "__syncthreads();"
            yield from _loop([f"terms[{k - first}][j] = t{k}[k];" for k in some])
            yield "__syncthreads();"
            yield f"if (threadIdx.x < 32 * {len(some)}) {{"
            yield "    const int which = threadIdx.x / 32;"
            yield "    const double sum = tile_sum(terms[which], size);"
            at = f"({first} + which) * (int64_t)gridDim.x + blockIdx.x"
            yield f"    if (!(threadIdx.x & 31)) {partials}[{at}] = sum;"
            yield "}"

    def count(self, pops: Sequence[Sequence[int]]) -> tuple[dict[str, str], list[str]]:
        """counts[b, tile] <- how many words of buffer b the tile will pop. Changes nothing else."""
        self.types = {}
        self._common("starts", "segments", "status", "counts")
        lines = ["if (status[0]) return;", *TILE_LINES, "int all = 0, pops, code = GOOD;"]
        lines.append("(void)code;")
        for row in pops:
            v, b = row[5], row[6]
            heads = self._p(f"{self.of}heads{b}", "uint32_t *")
            by_head = [
                *self._divisors(b),
                f"const uint32_t head = {heads}[lo + j];",
                "pops = ratio_pops_by_head(head, n.k, d.k);",
                "if (pops < 0) {",
                *(f"    {line}" for line in self._dry(row)),
                f"    pops = ratio_pops(vx{v}[k], head, n, d);",
                "}",
            ]
            lines += ["all = 0;", "EVERY_LANE {", "    pops = 0;", "    if (j < size) {"]
            lines += [f"        {line}" for line in by_head]
            lines += ["    }", "    all += __syncthreads_count(pops);", "}"]
            lines.append(f"if (!threadIdx.x) counts[{b} * (int64_t)gridDim.x + blockIdx.x] = all;")
        return self.types, lines

    def _dry(self, last: Sequence[int]) -> Iterator[str]:
        """What gives the target of `last` as it is just before, for one element."""
        rows = needed(self.form.rows, last)
        held = {last[5]} | {row[5] for _, row in rows if row[0] in (DECODE, *SIDES)}
        held |= {row[1] for _, row in rows if row[0] in SIDES and row[2] < 0}
        for v in sorted(held):
            yield f"int64_t vx{v}[PER]; vx{v}[k] = {self._variable(v)[0]}[lo + j];"
        for slot in sorted({row[1] for _, row in rows if self._fills_register(row)}):
            yield f"double s{slot}[PER];"
        for at, row in rows:
            yield from _scope(self._element(at, row, dry=True))


def _finish(main: _Writer, inverse: _Writer) -> tuple[dict[str, str], list[str]]:
    """Words to their stack; or, of a launch that was refused, tiles back to what they were."""
    writer = inverse
    writer._common("starts", "segments", "status", "serial", "refusals")
    moves = _settled(main, writer)
    buffers = {row[5]: row[6] for row in main.form.rows if row[0] == SCALE}
    words = {}
    for row in writer.form.rows:
        if row[0] == UNSCALE:
            staged = writer._p(f"staged{buffers[row[5]]}", "uint16_t *")
            words[row[6]] = f"{staged} + blockIdx.x * (int64_t)TILE"
    declared, loads, stores = writer._state()
    ops = [*writer._ops(words)]
    lines = ["if (!status[0]) {", *(f"    {line}" for line in moves), "    return;", "}"]
    lines.append(
        "if (status[0] != serial || status[1] != REFUSED || refusals[blockIdx.x] != GOOD) return;"
    )
    lines += [*TILE_LINES, "int code = GOOD;", "(void)code;", *declared, *_loop(loads), *ops]
    return writer.types, [*lines, *_loop(stores)]


def _settled(main: _Writer, writer: _Writer) -> Iterator[str]:
    """Where nothing was refused: spilled words are put down, popped ones are gone."""
    for row in main.form.rows:
        b = row[6]
        if row[0] == SCALE:
            writer._common("counts", "offsets", "bases")
            staged = writer._p(f"staged{b}", "uint16_t *")
            stack, keep = writer._p(f"words{b}", "uint16_t *"), writer._p(f"keep{b}", "int64_t")
            yield f"const int64_t at{b} = {b} * (int64_t)gridDim.x + blockIdx.x;"
            yield f"for (int j = threadIdx.x; {keep} && j < counts[at{b}]; j += THREADS)"
            place = f"{stack}[bases[{b}] + offsets[at{b}] + j]"
            yield f"    {place} = {staged}[blockIdx.x * (int64_t)TILE + j];"
        elif row[0] == UNSCALE:
            writer._common("bases")
            count = writer._p(f"count{b}", "int64_t *")
            yield f"if (!blockIdx.x && !threadIdx.x) *{count} = bases[{b}];"


def _loop(lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield "EACH_ELEMENT {"
        yield from (f"    {line}" for line in lines)
        yield "}"


def _scope(lines: Sequence[str]) -> list[str]:
    """Lines that may declare names."""
    return list(lines) if len(lines) < 2 else ["{", *(f"    {line}" for line in lines), "}"]


def _ranks(b: int) -> Iterator[str]:
    """p[k] <- how many elements of the tile before this one have m[k]; g[GROUPS]: all."""
    yield "EVERY_LANE {"
    yield f"    const unsigned mask = __ballot_sync(ALL, j < size && m{b}[k]);"
    yield f"    if (!(threadIdx.x & 31)) g{b}[j / 32] = __popc(mask);"
    yield f"    p{b}[k] = before_me(mask);"
    yield "}"
    yield f"add_up(g{b});"
    yield f"EVERY_LANE p{b}[k] += g{b}[j / 32];"
