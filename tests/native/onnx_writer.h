// ONNX models for tests, written as protobuf wire format: just what a graph of our ops needs.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace precast::test {

// The values of ONNX's enumerations of types.
inline constexpr int onnx_float32 = 1;
inline constexpr int onnx_uint8 = 2;
inline constexpr int onnx_int32 = 6;

struct OnnxAttribute {
  std::string name;
  std::variant<std::int64_t, float, std::string> value;
};

struct OnnxNode {
  std::string op;
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
  std::vector<OnnxAttribute> attributes;
  std::string domain = "ai.precast";
};

/// A number or, where the extent may vary, a name.
struct OnnxAxis {
  OnnxAxis(std::int64_t number) : extent(number) {}
  OnnxAxis(const char* text) : name(text) {}

  std::int64_t extent = 0;
  std::string name;
};

/// A graph's input, output or initializer.
struct OnnxTensor {
  std::string name;
  int type = onnx_float32;
  std::vector<OnnxAxis> shape;
};

struct OnnxGraph {
  std::vector<OnnxTensor> inputs;
  std::vector<OnnxTensor> outputs;
  std::vector<OnnxTensor> initializers;  // as external data, which nobody reads: a session is given its weights
  std::vector<OnnxNode> nodes;           // named node0, node1, ...

  /// The model's bytes: IR 10, opset 20, ai.precast 1.
  std::string bytes() const;
};

}  // namespace precast::test
