"""That the tests of the CUDA kernels find errors: each mutation below makes one, and the program of that kernel must fail.

The kernels are compiled for the host, checked (tests/cuda_shim/cuda_runtime.h says how), and run by the programs
tests/cuda_shim/test_<kernel>.cpp: exit code 3 is an error that the checker reports (a race, an access out of bounds, a
read of uninitialised memory, ...), 1 a wrong value. ``pytest -s tests/test_mutations.py`` prints what found which mutation;
``ADVNAS_WRITE=1`` makes it write benchmarks/results/cuda-mutations.md.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import FULL, rotation

ROOT = Path(__file__).parents[1]
SHIM = ROOT / "tests" / "cuda_shim"
PROGRAMS = ("gate", "layout", "node", "norm", "pointwise", "recurrent")
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the shim needs g++")

# A line `# kind`, and under it mutations: `file: what it is` (for a header `file, program: what it is`), `-` the text, which
# occurs once in the file, `+` what takes its place, or nothing. Mutations that change no result on any input, such as a wider
# row of shared memory, do not belong here.
LIST = """
# A barrier or a fence is missing
device.cuh, gate: before the first thread sums the warps of a gate
- __syncthreads();  // of_warp is complete
device.cuh, node: between two sums of a block
- __syncthreads();  // of_warp may still be read from the call before
device.cuh, node: before the first thread sums the warps
- __syncthreads();  // of_warp is complete
device.cuh, norm: the fence before a block is counted
- __threadfence();  // what this thread wrote is seen before its block is counted
device.cuh, node: a block is counted while its other threads still write
- __syncthreads();  // all threads of the block have written
device.cuh, pointwise: whether it is the last block is read before it is known
- __syncthreads();  // `last` is known
norm.cu: before the sums of the threads are added
- __syncthreads();  // sums is complete
node.cu: before the slots of the threads are added
- __syncthreads();  // the slots are complete
layout.cu: between writing the square and reading it
- __syncthreads();  // the square is complete
pointwise.cu: forward, before the product
- __syncthreads();  // the tile, and the first time the weight, is complete
pointwise.cu: forward, after the product
- __syncthreads();  // the result is complete
-     const int rows
+ const int rows
pointwise.cu: forward, before the next tile
- __syncthreads();  // tile and result are free
pointwise.cu: before the sums of the parts are added
- __syncthreads();  // the parts' sums are complete
pointwise.cu: backward, before the product
- __syncthreads();  // the tiles, and the first time the weight, are complete
pointwise.cu: backward, after the product
- __syncthreads();  // the result is complete, the tiles are free
pointwise.cu: the weight's gradient takes memory that is still read
- __syncthreads();  // shared memory is free
pointwise.cu: before the weight's gradient leaves the block
- __syncthreads();  // the block's gradient is complete
recurrent.cu: before the first threads sum the warps
- __syncthreads();  // of_warp is complete
recurrent.cu: before the totals are read
- __syncthreads();  // total is complete

# Who writes
recurrent.cu: the sources leave their sums at the same place
- args.partial + int64_t(k) * kSums * gridDim.x, gridDim.x
+ args.partial, gridDim.x
recurrent.cu: the blocks leave their sums at the same place
- partial[threadIdx.x * blocks + block] = sum;
+ partial[threadIdx.x * blocks] = sum;
recurrent.cu: every source gives the sum of the whole node
- n < node.num_edges && k == 0
+ n < node.num_edges
gate.cu: every block leaves its sum at the same place
- partial[blockIdx.x] = sum;
+ partial[0] = sum;
gate.cu: every thread writes the result
- if (threadIdx.x == 0) *dg = sum;
+ *dg = sum;
norm.cuh, norm: every thread counts the batch
- if (threadIdx.x == 0 && norm.batches_tracked != nullptr)
+ if (norm.batches_tracked != nullptr)
norm.cu: the blocks of every slab write the count
- if (threadIdx.x == 0 && blockIdx.y == 0) row[0]
+ if (threadIdx.x == 0) row[0]
norm.cuh, norm: the parts of two blocks overlap
- int64_t(block) * (1 + 2 * channels)
+ int64_t(block) * (2 * channels)
arrivals.cuh, node: threads beyond the lanes of a block work too
- index < num && lanes.lane() < lanes.lanes && pack
+ index < num && pack
node.cu: a slab leaves the sums of the gates where another one does
- row[int64_t(blockIdx.y) * gridDim.x * partial_size(a) + k] = sum;
+ row[k] = sum;
layout.cu: every image is written to the first one
- int64_t(blockIdx.z) * channels * pixels
+ 0
pointwise.cu: every block leaves its gradient of the weight at the same place
- a.partial + int64_t(blockIdx.x) * in * out
+ a.partial
pointwise.cu: every slice writes the first columns of the weight's gradient
- at = o * in + slice + c
+ at = o * in + c
tile.cuh, pointwise: both lanes of a row have its left half
- int(threadIdx.x) % 2 * kHalf
+ int(threadIdx.x) % 1 * kHalf

# The last block
device.cuh, norm: no block is the last
- == blocks - 1
+ == blocks
device.cuh, norm: a block is the last before the other slabs are done
- return is_last_block(counter, gridDim.x * gridDim.y);
+ return is_last_block(counter, gridDim.x);
pointwise.cu: the slices count their blocks together
- a.counter + blockIdx.y, gridDim.x
+ a.counter, gridDim.x
pointwise.cu: a slice waits for the others
- a.counter + blockIdx.y, gridDim.x
+ a.counter + blockIdx.y, gridDim.x * gridDim.y
pointwise.cu: a gradient of one range is summed over the ranges
- if (alone || !is_last_block
+ if (!is_last_block
device.cuh, node: the counter is not reset
- if (last) *counter = 0;
device.cuh, node: one partial sum too many
- if (first + i < num) sum[i]
+ if (first + i <= num) sum[i]
node.cu: the sums of the gates leave out the other slabs
- blocks * int(gridDim.y)
+ blocks
norm.cuh, norm: the squares leave out what lies between the blocks
- + __ldcg(of_block) * from_mean * from_mean;
+ ;

# Edges
recurrent.cu: the last pack begins one row late
- const int64_t row = i / packs_in_row, unit = i % packs_in_row * kSize;
-     float sum[kSize] = {};
+ const int64_t row = i / packs_in_row + (i + 1 == packs), unit = i % packs_in_row * kSize;
+     float sum[kSize] = {};
recurrent.cu: units that no pack divides are loaded by packs
- if (node.units % kFullPack<T> == 0 && are_aligned(states, pre, out)) {
+ if (are_aligned(states, pre, out)) {
recurrent.cu: memory that begins anywhere is loaded by packs
- are_aligned(states, pre, dout, dstates, dpre)
+ true
recurrent.cu: a node without sources takes the first one
- if (!is_source) continue;
recurrent.cu: a block takes no second round
- threadIdx.x; i < packs; i += stride) {
-     const int64_t row = i / packs_in_row, unit = i % packs_in_row * kSize;
-     float d[kSize];
+ threadIdx.x; i < packs; i += packs) {
+     const int64_t row = i / packs_in_row, unit = i % packs_in_row * kSize;
+     float d[kSize];
recurrent.cu: an operation that is not picked leaves its sum
- k < node.num_sources && (node.source[k].picked >> n & 1) != 0
+ k < node.num_sources
gate.cu: the rest goes one element too far
- i < size; i += stride) one(i);
+ i <= size; i += stride) one(i);
gate.cu: packs begin one element late
- pack(i * kPack);
+ pack(i * kPack + 1);
device.cuh, gate: memory that begins anywhere is loaded by packs
- pointers) % 16 == 0
+ pointers) % 1 == 0
device.cuh, norm: the last slab loses a pack
- const int slab = (packs + slabs - 1) / slabs;
+ const int slab = packs / slabs;
norm.cu: threads beyond the channels work too
- lanes.lane() < lanes.lanes && pack * kPack < channels
+ lanes.lane() < lanes.lanes
norm.cu: the last tile counts as full
- count += min(int64_t(lanes.lanes), pixels - at)
+ count += int64_t(lanes.lanes)
norm.cu: a gradient one pack too far
- if (i >= packs) return;
+ if (i > packs) return;
norm.cu: packs where the channels do not divide
- shape.channels % kFull == 0 ? launch_gradient
+ shape.channels % 1 == 0 ? launch_gradient
arrivals.cuh, node: columns beyond the batch are worked on
- index < num && lanes
+ lanes
arrivals.cuh, node: rows below the image are read
- if (h < column.rows) {
+ if (h < kRows<kPack>) {
node.cu: rows below the image are written, forward
- if (h >= column.rows) continue;
-     const int64_t at
+ const int64_t at
node.cu: rows below the image are written, backward
- if (h < column.rows) store(a.dx
+ store(a.dx
node.cu: rows below the image are summed
- if (h < column.rows) sum +=
+ sum +=
arrivals.cuh, node: pooling reads the row above the image
- if (row < 0 || row >= shape.height) continue;
+ if (row >= shape.height) continue;
arrivals.cuh, node: pooling reads beyond the right border
- if (w < 0 || w >= shape.width) continue;
+ if (w < 0) continue;
arrivals.cuh, node: a maximum is sought above the image
- exists(column.row + r, column.w + side)
+ exists(max(column.row + r, 0), column.w + side)
arrivals.cuh, node: a maximum is sought beyond the right border
- exists(column.row + r, column.w + side)
+ exists(column.row + r, min(column.w + side, shape.width - 1))
arrivals.cuh, node: the gradient of a maximum comes from beyond the border
- if (!exists(column.row, column.w + side)) continue;
arrivals.cuh, node: the maximum of a row is sought beyond the border
- if (!exists(row, column.w + across)) continue;
+ if (!exists(row, column.w + side)) continue;
arrivals.cuh, node: windows below the image give a gradient
- if (!row_exists(window)) continue;
node.cu: channels beyond the last slab are written
- if (channel >= a.shape.channels) continue;
layout.cu: channels beyond the image are read
- channel + row < channels && pixel + across < pixels
+ pixel + across < pixels
layout.cu: pixels beyond the image are written
- channel + across >= channels || pixel + row >= pixels
+ channel + across >= channels
pointwise.cu: pixels beyond the last are read
- if (pixel < part.pixels && channel < part.channels)
+ if (channel < part.channels)
pointwise.cu: the padding of the channels is read
- if (pixel < part.pixels && channel < part.channels)
+ if (pixel < part.pixels)
pointwise.cu: pixels beyond the last are written
- if (part.pixel + row >= part.pixels) break;
pointwise.cu: a gradient over no pixels without a block
- return ranges > 1 ? ranges : 1;
+ return ranges;
pointwise.cu: the last slice is as wide as the others
- width = min(l.in, in - slice)
+ width = l.in
pointwise.cu: a slice takes the weight of the first
- a.weight[o * in + slice + c]
+ a.weight[o * in + c]

# Shared memory
device.cuh, node: a block takes more threads than it may
- return {slab, slabs, kBlock / slab};
+ return {slab, slabs, kBlock / slab + 1};
device.cuh, node: warps that a small block does not have are summed
- warp < blockDim.x / kWarp; ++warp
+ warp < kBlock / kWarp; ++warp
node.cu: slots of the channels are not cleared
- slot < a.num + sums * kPack; ++slot
+ slot < a.num; ++slot
node.cu: a launch with room for half of the slots
- slots * columns.lanes.block() * int(sizeof(float))
+ slots * columns.lanes.block() * int(sizeof(float) / 2)
layout.cu: a wrong stride in the square
- square[across * (kSide + 1) + row]
+ square[across * kSide + row]
pointwise.cu: rows that are not aligned
- l.in_stride = l.in + kPadding<T>;
+ l.in_stride = l.in + 1;
pointwise.cu: the tiles overlap
- end += (elements * size + 127) / 128 * 128;
+ end += (elements * size / 2 + 127) / 128 * 128;
pointwise.cu: no room for the sums of all threads beside 16 channels
- elements > sums ? elements : sums
+ elements
tile.cuh, pointwise: the lanes of later warps lie beyond the tile
- int(threadIdx.x) % kWarp / 2
+ int(threadIdx.x) / 2

# Sums
device.cuh, gate: a stage of the reduction is missing
- int offset = kWarp / 2;
+ int offset = kWarp / 4;
device.cuh, pointwise: one of eight sums is taken twice
- (sum[6] + sum[7])
+ (sum[6] + sum[6])
norm.cu: distances are taken from 0
- load(z + first * channels + pack * kPack, origin);
norm.cuh, norm: the running variance is that of the batch
- m2 / (count - 1)
+ m2 / count
norm.cuh, node: a sum with the values is taken for the plain one
- (1 + j) * channels + c
+ j * channels + c
norm.cuh, node: the gate's gradient leaves out beta
- + at_or(norm.beta, c, 0) * s1;
+ ;
node.cu: the last step of a warp's sum is missing
- for (int offset = kWarp / 2; offset > 0; offset /= 2)
+ for (int offset = kWarp / 2; offset > 1; offset /= 2)
node.cu: the last lane is left out
- lane_of < columns.lanes.lanes;
+ lane_of < columns.lanes.lanes - 1;
pointwise.cu: distances are taken from 0
- if (count == 0) origin = stored(0);
pointwise.cu: the last part is left out
- p < parts; ++p
+ p < parts - 1; ++p
tile.cuh, pointwise: sums on tensor cores start at 1
- fill_fragment(sum_, 0.0f)
+ fill_fragment(sum_, 1.0f)

# Formulas
device.cuh, node: the ReLU of NaN is 0
- return v < 0 ? 0 : v;
+ return v > 0 ? v : 0;
norm.cuh, norm: without gamma the scale is 0
- at_or(norm.gamma, c, 1), at_or
+ at_or(norm.gamma, c, 0), at_or
norm.cu: the coefficients of another channel
- gradient + i * kPack % channels
+ gradient + i % channels
arrivals.cuh, node: the mean of a pooled pixel is always over 9
- 1.0f / float(pool_window(column.w, shape.width) * pool_window(column.row + h, shape.height))
+ 1.0f / 9.0f
arrivals.cuh, node: the transpose divides by the window of the wrong column
- pool_window(w, shape.width)
+ pool_window(column.w, shape.width)
arrivals.cuh, node: pooling leaves out a row
- h < r - 1 || h > r + 1
+ h < r - 1 || h > r
arrivals.cuh, node: a maximum loses a NaN
- is_greater(value[i], to[h][i])
+ (value[i] > to[h][i])
arrivals.cuh, node: a maximum leaves out the row above
- h < r - 1 || r < h - 1
+ h < r || r < h - 1
arrivals.cuh, node: the gradient goes to the last of equal values in a row
- is_greater(value[i], greatest[r][i])
+ (value[i] >= greatest[r][i])
arrivals.cuh, node: the gradient goes to the last of equal rows
- is_greater(greatest[window + 1][i], value)
+ (greatest[window + 1][i] >= value)
arrivals.cuh, node: the row below a window is left out
- if (row_exists(window + 1) &&
+ if (false &&
arrivals.cuh, node: the gradient of every window of the right rows is taken
- row == h + 2 && (ours[h + 2] >> i & 1) != 0
+ row == h + 2
arrivals.cuh, node: the gradient of every window of the right columns is taken
- row == h + 2 && (ours[h + 2] >> i & 1) != 0
+ (ours[h + 2] >> i & 1) != 0
arrivals.cuh, node: the gradient of a maximum is taken by another channel
- 1u << i : ours
+ 1u << (i ^ 1) : ours
arrivals.cuh, node: a maximum is not taken back
- : ours[r] & ~(1u << i)
+ : ours[r]
node.cu: forward pools by the transpose
- arrive<false, kMaxima>(source, source.data, shape, column, value);
+ arrive<true, kMaxima>(source, source.data, shape, column, value);
node.cu: backward leaves out what it starts from
- start_column(a.start, shape, column, dx);
+ start_column<T, kPack>(nullptr, shape, column, dx);
node.cu: a mask is inverted
- x[h][i] <= 0 ? 0.0f : value[h][i]
+ x[h][i] <= 0 ? value[h][i] : 0.0f
node.cu: a source is skipped
- NodeSource<T>& source = a.source[k];
-     Values<kPack> value;
+ NodeSource<T>& source = a.source[k / 2];
+     Values<kPack> value;
node.cu: the scale is taken for the shift
- source.scale_shift[shape.channels + channel + i]
+ source.scale_shift[channel + i]
pointwise.cu: the mean of 2x2 pixels reads beyond the border
- across = halved_window(w, prologue.width)
+ across = 2
pointwise.cu: the mean of 2x2 pixels takes a row of the next image
- down = halved_window(h, prologue.height)
+ down = 2
pointwise.cu: the second row of 2x2 pixels is taken for the first
- k / across) * prologue.width
+ k / across) * 0
arrivals.cuh, node: a gradient is spread with the share of a whole window
- 1.0f / float(halved_window(row, shape.height) * halved_window(w, shape.width))
+ 0.25f
arrivals.cuh, node: a gradient is spread by images of full height
- image * height + row
+ image * shape.height + row
arrivals.cuh, node: rows below the image are spread
- if (h >= column.rows) continue;
-     const int row =
+ const int row =
norm.cuh, node: without batch norm the deviation is 0
- at_or(norm.rows, kRstd * channels + c, 1)
+ at_or(norm.rows, kRstd * channels + c, 0)
pointwise.cu: a ReLU where there is none
- prologue.relu ? relu(v[i]) : v[i]
+ prologue.relu ? v[i] : relu(v[i])
pointwise.cu: the last range is left out of the weight's gradient
- in * out, int(gridDim.x)
+ in * out, int(gridDim.x) - 1
pointwise.cu: the weight's gradient is read as if all slices had its width
- i / width * in + slice + i % width
+ i / l.in * in + slice + i % l.in
tile.cuh, pointwise: the transposed tile is not transposed
- kTransposed ? a[k * a_stride + row()] : a[row() * a_stride + k]
+ a[row() * a_stride + k]
tile.cuh, pointwise: the transposed tile is not transposed on tensor cores
- std::conditional_t<kTransposed, wmma::col_major
+ std::conditional_t<!kTransposed, wmma::col_major
recurrent.cu: the state is carried on without its factor
- recurrent_highway(node.source[k].carry * s[j],
+ recurrent_highway(s[j],
recurrent.cu: the node's scale is left out
- sum[j] *= node.scale;
+ sum[j] *= 1;
recurrent.cu: the node's scale is left out of the gradient
- d[j] *= node.scale;
+ d[j] *= 1;
recurrent.cu: the gradient of a state is written, not added
- ds[j] = ds[j] + gradient.dstate(carry);
+ ds[j] = gradient.dstate(carry);
recurrent.cu: of several picked operations only the last one counts
- y += node.source[k].gate[op] * recurrent_activation<DeviceMath>(op, in);
+ y = node.source[k].gate[op] * recurrent_activation<DeviceMath>(op, in);
recurrent.cu: the sum of an output is that of the gradient
- sums[kNumRecurrentOps] += gradient.d * gradient.c;
+ sums[kNumRecurrentOps] += gradient.d;
../recurrent_math.h, recurrent: a gate inside multiplies the whole edge
- return whole ? state + c * (f - state) : c * f;
+ return state + c * (f - state);
../recurrent_math.h, recurrent: the slope of tanh
- return one - f * f;
+ return one - f;
"""


@dataclass(frozen=True)
class Mutation:
    kind: str
    file: str
    program: str
    what: str
    text: str
    replacement: str


def parse(listed: str) -> list[Mutation]:
    kind, mutations = "", []
    for part in re.split(r"\n+(?=[^-+\n])", listed.strip()):
        first, *changes = part.split("\n")
        if first.startswith("# "):
            kind = first[2:]
            continue
        names, what = first.split(": ", 1)
        file, _, program = names.partition(", ")
        old, new = ("\n".join(line[2:] for line in changes if line[0] == sign) for sign in "-+")
        mutations.append(Mutation(kind, file, program or Path(file).stem, what, old, new))
    return mutations


MUTATIONS = parse(LIST)
TODAY = rotation(MUTATIONS, 8)


class Workshop:
    """Builds a program from kernels that may be mutated, and runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[Mutation, tuple[int, str]] = {}
        for name in ("shim", "checker", *(f"test_{program}" for program in PROGRAMS)):
            self.compile(SHIM / f"{name}.cpp", folder / f"{name}.o", "-DCUDA_SHIM_QUICK")

    def compile(self, source: Path, to: Path, *flags: str) -> None:
        command = ["g++", "-std=c++20", "-O1", "-w", f"-I{SHIM}", *flags, "-x", "c++", "-c", str(source), "-o", str(to)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(self, kernels: Path, program: str) -> tuple[int, str]:
        """Exit code, and what it means in words."""
        source, kernel = kernels / "cuda" / f"{program}.cu", self.folder / "kernel.o"
        self.compile(source, kernel, "-fsanitize=thread")
        # The kernel first: of functions in several objects the linker keeps the copy with the hooks.
        objects = [kernel, *(self.folder / f"{name}.o" for name in (f"test_{program}", "shim", "checker"))]
        executable = self.folder / "program"
        subprocess.run(["g++", *map(str, objects), "-o", str(executable)], check=True)
        done = subprocess.run([str(executable)], capture_output=True, text=True, timeout=300)
        error = re.search(r"thread \([\d,]+\): ([^:]+): ", done.stderr)
        return done.returncode, error[1] if error else {0: "nothing", 1: "wrong value"}.get(
            done.returncode, done.stderr
        )

    def copy(self, name: str) -> Path:
        kernels = self.folder / name / "csrc" / "kernels"
        ignore = shutil.ignore_patterns("cpu")
        shutil.copytree(ROOT / "csrc" / "kernels", kernels, ignore=ignore)
        for source in set(kernels.glob("cuda/*.cu")) - {kernels / "cuda" / "gate.cu"}:
            # The two types that the quick programs test.
            source.write_text(source.read_text().replace("ADVNAS_INSTANTIATE(__nv_bfloat16)\n", ""))
        return kernels

    def find(self, mutation: Mutation) -> tuple[int, str]:
        if mutation not in self.found:
            kernels = self.copy(f"mutation{len(self.found)}")
            file = kernels / "cuda" / mutation.file
            text = file.read_text()
            assert text.count(mutation.text) == 1, f"{mutation.file} must have once: {mutation.text}"
            file.write_text(text.replace(mutation.text, mutation.replacement))
            self.found[mutation] = self.run(kernels, mutation.program)
        return self.found[mutation]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("mutations"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_as_they_are(workshop: Workshop, program: str) -> None:
    assert workshop.run(workshop.copy(program), program) == (0, "nothing")


@pytest.mark.parametrize("mutation", TODAY, ids=lambda m: f"{m.file}: {m.what}")
def test_mutation_is_found(workshop: Workshop, mutation: Mutation) -> None:
    code, by = workshop.find(mutation)
    assert code in (1, 3), f"{code}: {by}"


@pytest.mark.skipif(not FULL, reason="takes all mutations: make test-full")
def test_what_finds_them(workshop: Workshop) -> None:
    by = {mutation: workshop.find(mutation)[1] for mutation in MUTATIONS}
    counts = Counter(by.values()).most_common()
    checker = len(MUTATIONS) - Counter(by.values())["wrong value"]
    lines = ["# What finds errors in the CUDA kernels", ""]
    lines += [
        f"`tests/test_mutations.py` makes {len(MUTATIONS)} errors, one at a time. All are found, {checker} by the checker,"
    ]
    lines += [f"{len(MUTATIONS) - checker} by a wrong value: {', '.join(f'{kind} {count}' for kind, count in counts)}."]
    for kind in dict.fromkeys(mutation.kind for mutation in MUTATIONS):
        lines += ["", f"## {kind}", "", "| file | mutation | found by |", "|---|---|---|"]
        lines += [f"| {m.file} | {m.what} | {by[m]} |" for m in MUTATIONS if m.kind == kind]
    print("\n" + "\n".join(lines))
    if os.environ.get("ADVNAS_WRITE") == "1":
        (ROOT / "benchmarks" / "results" / "cuda-mutations.md").write_text("\n".join(lines) + "\n")
    assert len(MUTATIONS) >= 30
    assert checker >= len(MUTATIONS) / 3
    assert all(by[m] != "wrong value" for m in MUTATIONS if m.kind == MUTATIONS[0].kind), "of a missing barrier"
