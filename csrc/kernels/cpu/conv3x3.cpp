// An image is first copied into a frame with zeros around it, rectified (or turned into dz) on the way, so that no later step
// tests for the border. Tiles are then taken in blocks of about kBlock, from as many images as it takes:
//
//   forward, dx   transform the block's patches             V [rows of kRows tiles, place, tile, in]        second-level cache
//                 for each panel of output channels and each row of tiles: 36 products into M [place, tile, width], which stays
//                 in the first-level cache, and at once the output transform, ReLU mask, sums, and the store
//   dweight       transform patches of x and tiles of dz    V [place, tile, in], D [place, tile, out]
//                 for each place: dU [in, out] += V^T D; the block is long enough to pay for loading and storing dU
//
// kBlock is the largest for which 64 channels' V and one panel of the weight fit the second-level cache: with fewer tiles the
// weight (590 KB at 64 channels) would come from the third-level cache too often.
#include "../conv3x3.h"

#include "conv3x3_pack.h"
#include "conv_output.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

constexpr int64_t kBlock = 24;

struct Tiling {
  int64_t rows, columns;  // of tiles
  int64_t frame_height, frame_width;
  explicit Tiling(const ConvShape& shape)
      : rows((shape.height + 3) / 4), columns((shape.width + 3) / 4), frame_height(4 * rows + 2), frame_width(4 * columns + 2) {}
  int64_t tiles() const { return rows * columns; }
  int64_t frame_pixels() const { return frame_height * frame_width; }
  int64_t images_at_once() const { return tiles() < kBlock ? (kBlock + tiles() - 1) / (tiles() > 0 ? tiles() : 1) : 1; }
};

// A place's stride is an odd number of cache lines, so that the 36 places of a tile do not meet in a few sets of the cache.
template <class T>
int64_t place_stride(int64_t tiles, int64_t channels) {
  return ((tiles * channels + kLine<T> - 1) / kLine<T> | 1) * kLine<T>;
}

template <class T>
struct Buffers {
  T *x_frame, *dz_frame, *v, *d, *m, *sums;
  int64_t size = kLine<T>;  // for the alignment

  Buffers(const ConvShape& shape, T* workspace) {
    const Tiling tiling(shape);
    const int64_t in = pad_to_lanes<T>(shape.in), out = pad_to_lanes<T>(shape.out), most = in > out ? in : out;
    T* next = align(workspace);
    const auto take = [&](int64_t elements) {
      T* const taken = next;
      const int64_t whole = (elements + kLine<T> - 1) / kLine<T> * kLine<T>;
      next += whole;
      size += whole;
      return taken;
    };
    x_frame = take(tiling.images_at_once() * tiling.frame_pixels() * in);
    dz_frame = take(tiling.images_at_once() * tiling.frame_pixels() * out);
    v = take(kPlaces * (place_stride<T>(kBlock, most) + kBlock * kLine<T>));
    d = take(kPlaces * place_stride<T>(kBlock, out));
    m = take(kPlaces * kRows * kPanel<T>);
    sums = take(3 * out);
  }
};

// read(pixel, pixels, out) gives a run of pixels of the image.
template <class T, class Read>
void fill_frame(const ConvShape& shape, const Tiling& tiling, int64_t channels, T* frame, const Read& read) {
  const auto clear = [&](int64_t pixels) {
    std::memset(frame, 0, size_t(pixels * channels) * sizeof(T));
    frame += pixels * channels;
  };
  clear(tiling.frame_width + 1);
  for (int64_t h = 0; h < shape.height; ++h) {
    read(h * shape.width, shape.width, frame);
    frame += shape.width * channels;
    clear(tiling.frame_width - shape.width);
  }
  clear((tiling.frame_height - 1 - shape.height) * tiling.frame_width - 1);
}

template <class T>
void fill_x_frames(const T* x, bool relu, int64_t images, const ConvShape& shape, const Tiling& tiling, T* frames) {
  const int64_t channels = pad_to_lanes<T>(shape.in);
  for (int64_t n = 0; n < images; ++n) {
    const T* const image = x + n * shape.height * shape.width * shape.in;
    fill_frame(shape, tiling, channels, frames + n * tiling.frame_pixels() * channels, [&](int64_t pixel, int64_t pixels, T* to) {
      read_rectified(image + pixel * shape.in, relu_floor<T>(relu), pixels, shape.in, to);
    });
  }
}

template <class T>
void fill_dz_frames(const ConvGradient<T>& gradient, int64_t first, int64_t images, const ConvShape& shape, const Tiling& tiling,
                    T* frames) {
  const int64_t channels = pad_to_lanes<T>(shape.out);
  for (int64_t n = 0; n < images; ++n) {
    const int64_t image = (first + n) * shape.height * shape.width;
    fill_frame(shape, tiling, channels, frames + n * tiling.frame_pixels() * channels,
               [&](int64_t pixel, int64_t pixels, T* to) { read_gradient(gradient, image + pixel, pixels, shape.out, to); });
  }
}

// The tiles of a group of images, row by row.
struct Tile {
  int64_t image, row, column;
  const Tiling& tiling;
  Tile(const Tiling& tiling, int64_t index)
      : image(index / tiling.tiles()),
        row(index % tiling.tiles() / tiling.columns),
        column(index % tiling.columns),
        tiling(tiling) {}
  void next() {
    if (++column < tiling.columns) return;
    column = 0;
    if (++row < tiling.rows) return;
    row = 0;
    ++image;
  }
  bool is_first() const { return image == 0 && row == 0 && column == 0; }
  // Of the tile's 6x6 patch in the frames.
  int64_t frame_pixel() const { return (image * tiling.frame_height + 4 * row) * tiling.frame_width + 4 * column; }
};

// v [place, tile, channels] of `tiles` tiles.
template <class T>
void transform_patches(const T* frames, int64_t channels, Tile tile, int64_t tiles, int64_t stride, T* v) {
  const int64_t row = tile.tiling.frame_width * channels;
  for (int64_t t = 0; t < tiles; ++t, tile.next()) {
    const T* const patch = frames + tile.frame_pixel() * channels;
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      const T* const from = patch + c;
      T* const to = v + t * channels + c;
      transform_input([&](int i, int j) ADVNAS_INLINE { return load(from + i * row + j * channels); },
                      [&](int place, Vec<T> value) ADVNAS_INLINE { store(to + place * stride, value); });
    }
  }
}

// d [place, tile, channels] of `tiles` tiles.
template <class T>
void transform_gradients(const T* frames, int64_t channels, Tile tile, int64_t tiles, int64_t stride, T* d) {
  const int64_t row = tile.tiling.frame_width * channels;
  for (int64_t t = 0; t < tiles; ++t, tile.next()) {
    const T* const inner = frames + tile.frame_pixel() * channels + row + channels;
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      const T* const from = inner + c;
      T* const to = d + t * channels + c;
      transform_output_gradient([&](int i, int j) ADVNAS_INLINE { return load(from + i * row + j * channels); },
                                [&](int place, Vec<T> value) ADVNAS_INLINE { store(to + place * stride, value); });
    }
  }
}

// Output transform of one tile and one vector of channels. m: [place, ...] with a stride of `stride`.
template <class T, class Lanes>
inline void put_tile(const T* m, int64_t stride, const ConvShape& shape, const Tile& tile, int64_t channels, int64_t count,
                     Lanes& lanes) {
  const int64_t row = shape.width * channels;
  const int64_t offset = (tile.image * shape.height + 4 * tile.row) * row + 4 * tile.column * channels;
  const int64_t height = shape.height - 4 * tile.row, width = shape.width - 4 * tile.column;
  const auto get = [&](int place) ADVNAS_INLINE { return load(m + place * stride); };
  if (height >= 4 && width >= 4 && count >= kLanes<T>) {
    transform_output(get, [&](int i, int j, Vec<T> v) ADVNAS_INLINE { lanes.put(offset + i * row + j * channels, v); });
    return;
  }
  Vec<T> values[4][4];
  transform_output(get, [&](int i, int j, Vec<T> v) { values[i][j] = v; });
  const int64_t whole = count < kLanes<T> ? count : kLanes<T>;
  for (int64_t i = 0; i < height && i < 4; ++i) {
    for (int64_t j = 0; j < width && j < 4; ++j) lanes.put_part(offset + i * row + j * channels, values[i][j], whole);
  }
}

// The tile's first pixel.
template <class T>
inline Vec<T> first_value(const T* m, int64_t stride) {
  Vec<T> sum{};
  for (int place = 0; place < 30; ++place) {
    if (place % 6 < 5) sum += load(m + place * stride);
  }
  return sum;
}

// From frames of `images` images with `in` channels to `output`; output.channels() is the number of output channels.
template <class T, class Output>
void convolve(const T* frames, int64_t in, int64_t first_image, int64_t images, const ConvShape& shape, const Tiling& tiling,
              const T* packed, const Buffers<T>& buffers, Output& output) {
  const int64_t padded = pad_to_lanes<T>(in), out = output.channels();
  const Split blocks(images * tiling.tiles(), kBlock);
  for (int64_t block = 0; block < blocks.parts; ++block) {
    const int64_t first = blocks.begin(block);
    const Split groups(blocks.begin(block + 1) - first, kRows);
    const int64_t group_size = kPlaces * place_stride<T>(kRows, padded);
    for (int64_t g = 0; g < groups.parts; ++g) {
      const int64_t tiles = groups.begin(g + 1) - groups.begin(g);
      transform_patches(frames, padded, Tile(tiling, first + groups.begin(g)), tiles, place_stride<T>(tiles, padded),
                        buffers.v + g * group_size);
    }
    for_panels<T>(out, [&](int64_t column, auto vectors) {
      constexpr int kN = decltype(vectors)::value;
      const T* const panel = weight_panel(packed, in, column);
      for (int64_t g = 0; g < groups.parts; ++g) {
        const int64_t tiles = groups.begin(g + 1) - groups.begin(g), stride = place_stride<T>(tiles, padded);
        const T* const v = buffers.v + g * group_size;
        const int64_t m_stride = tiles * kN * kLanes<T>;
        with_constant<kRows>(tiles, [&](auto rows) {
          constexpr int kM = decltype(rows)::value;
          for (int64_t place = 0; place < kPlaces; ++place) {
            T* const m = buffers.m + place * m_stride;
            multiply<kM, kN, false>(
                v + place * stride, padded, panel + place * in * kN * kLanes<T>, kN * kLanes<T>, in,
                [](int, int) ADVNAS_INLINE { return Vec<T>{}; },
                [&](int t, int n, Vec<T> value) ADVNAS_INLINE { store(m + (t * kN + n) * kLanes<T>, value); });
          }
        });
        for (int n = 0; n < kN; ++n) {
          const int64_t c = column + n * kLanes<T>;
          Tile tile(tiling, first + groups.begin(g));
          tile.image += first_image;
          if (tile.is_first()) output.set_origin(c, first_value(buffers.m + n * kLanes<T>, m_stride));
          auto lanes = output.lanes(c);
          for (int64_t t = 0; t < tiles; ++t, tile.next()) {
            put_tile(buffers.m + (t * kN + n) * kLanes<T>, m_stride, shape, tile, out, out - c, lanes);
          }
          lanes.finish();
        }
      }
    });
    output.flush();
  }
}

// dpacked += sum over the tiles of both frames.
template <class T>
void add_weight_gradient(int64_t images, const ConvShape& shape, const Tiling& tiling, const Buffers<T>& buffers, T* dpacked) {
  const int64_t in = shape.in, padded_in = pad_to_lanes<T>(in), padded_out = pad_to_lanes<T>(shape.out);
  const Split blocks(images * tiling.tiles(), kBlock), rows(in, kRows);
  for (int64_t block = 0; block < blocks.parts; ++block) {
    const Tile tile(tiling, blocks.begin(block));
    const int64_t tiles = blocks.begin(block + 1) - blocks.begin(block);
    const int64_t v_stride = place_stride<T>(tiles, padded_in), d_stride = place_stride<T>(tiles, padded_out);
    transform_patches(buffers.x_frame, padded_in, tile, tiles, v_stride, buffers.v);
    transform_gradients(buffers.dz_frame, padded_out, tile, tiles, d_stride, buffers.d);
    for (int64_t place = 0; place < kPlaces; ++place) {
      for_panels<T>(shape.out, [&](int64_t column, auto vectors) {
        constexpr int kN = decltype(vectors)::value;
        constexpr int64_t width = kN * kLanes<T>;
        T* const panel = gradient_panel(dpacked, place, in, shape.out, column);
        for (int64_t r = 0; r < rows.parts; ++r) {
          const int64_t i = rows.begin(r);
          T* const sums = panel + i * width;
          with_constant<kRows>(rows.begin(r + 1) - i, [&](auto count) {
            multiply<decltype(count)::value, kN, true>(
                buffers.v + place * v_stride + i, padded_in, buffers.d + place * d_stride + column, padded_out, tiles,
                [&](int m, int n) ADVNAS_INLINE { return load(sums + m * width + n * kLanes<T>); },
                [&](int m, int n, Vec<T> v) ADVNAS_INLINE { store(sums + m * width + n * kLanes<T>, v); });
          });
        }
      });
    }
  }
}

// Calls body(first image, images) for every group.
template <class Body>
void for_groups(int64_t images, const Tiling& tiling, const Body& body) {
  const int64_t most = tiling.images_at_once();
  for (int64_t first = 0; first < images; first += most) body(first, images - first < most ? images - first : most);
}

template <class T>
void forward(const T* x, bool relu, const T* packed, T* z, const ConvMoments& moments, int64_t images, const ConvShape& shape,
             T* workspace) {
  const Tiling tiling(shape);
  const Buffers<T> buffers(shape, workspace);
  const int64_t pixels = shape.height * shape.width;
  MomentsOutput<T> output(z, moments, shape.out, buffers.sums);
  for_groups(images, tiling, [&](int64_t first, int64_t count) {
    fill_x_frames(x + first * pixels * shape.in, relu, count, shape, tiling, buffers.x_frame);
    convolve(buffers.x_frame, shape.in, first, count, shape, tiling, packed, buffers, output);
  });
  output.finish(images * pixels);
}

template <class T>
void backward(const ConvGradient<T>& gradient, const T* x, bool relu, const T* transposed, T* dx, bool accumulate, T* dpacked,
              int64_t images, const ConvShape& shape, T* workspace) {
  const Tiling tiling(shape);
  const Buffers<T> buffers(shape, workspace);
  for_groups(images, tiling, [&](int64_t first, int64_t count) {
    fill_dz_frames(gradient, first, count, shape, tiling, buffers.dz_frame);
    if (dx != nullptr && accumulate) {
      InputGradientOutput<T, true> output(x, relu, dx, shape.in);
      convolve(buffers.dz_frame, shape.out, first, count, shape, tiling, transposed, buffers, output);
    } else if (dx != nullptr) {
      InputGradientOutput<T, false> output(x, relu, dx, shape.in);
      convolve(buffers.dz_frame, shape.out, first, count, shape, tiling, transposed, buffers, output);
    }
    if (dpacked == nullptr) return;
    fill_x_frames(x + first * shape.height * shape.width * shape.in, relu, count, shape, tiling, buffers.x_frame);
    add_weight_gradient(count, shape, tiling, buffers, dpacked);
  });
}

template <class T>
int64_t workspace_size(const ConvShape& shape) {
  return Buffers<T>(shape, nullptr).size;
}

int64_t images_at_once(const ConvShape& shape) { return Tiling(shape).images_at_once(); }

}  // namespace

template <class T>
ConvKernels<T> conv3x3_kernels() {
  return {conv3x3_packed_size<T>,     workspace_size<T>, images_at_once, conv3x3_pack<T>,
          conv3x3_pack_transposed<T>, forward<T>,        backward<T>,    conv3x3_unpack_gradient<T>};
}
template ConvKernels<float> conv3x3_kernels();
template ConvKernels<double> conv3x3_kernels();

}  // namespace advnas::cpu::ADVNAS_ISA
