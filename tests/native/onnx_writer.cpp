#include "tests/native/onnx_writer.h"

#include <bit>

#include "tests/native/engine_files.h"

namespace precast::test {
namespace {

// Fields of protobuf: a tag, the field's number and wire type, then a number, 4 bytes, or a length and bytes.
std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

std::string number(std::uint32_t field, std::int64_t value) {
  return varint(field << 3) + varint(static_cast<std::uint64_t>(value));
}

std::string float32(std::uint32_t field, float value) {
  return varint(field << 3 | 5) + little_endian(std::bit_cast<std::uint32_t>(value));
}

std::string message(std::uint32_t field, const std::string& bytes) {
  return varint(field << 3 | 2) + varint(bytes.size()) + bytes;
}

std::string attribute(const OnnxAttribute& attribute) {
  std::string bytes = message(1, attribute.name);
  if (const auto* real = std::get_if<float>(&attribute.value)) return bytes + float32(2, *real) + number(20, 1);
  if (const auto* text = std::get_if<std::string>(&attribute.value)) return bytes + message(4, *text) + number(20, 3);
  return bytes + number(3, std::get<std::int64_t>(attribute.value)) + number(20, 2);
}

std::string node(const OnnxNode& node, std::size_t index) {
  std::string bytes;
  for (const std::string& input : node.inputs) bytes += message(1, input);
  for (const std::string& output : node.outputs) bytes += message(2, output);
  bytes += message(3, "node" + std::to_string(index)) + message(4, node.op);
  for (const OnnxAttribute& one : node.attributes) bytes += message(5, attribute(one));
  return bytes + message(7, node.domain);
}

std::string value_info(const OnnxTensor& tensor) {
  std::string shape;
  for (const OnnxAxis& axis : tensor.shape) {
    shape += message(1, axis.name.empty() ? number(1, axis.extent) : message(2, axis.name));
  }
  return message(1, tensor.name) + message(2, message(1, number(1, tensor.type) + message(2, shape)));
}

std::string initializer(const OnnxTensor& tensor) {
  std::string bytes;
  for (const OnnxAxis& axis : tensor.shape) bytes += number(1, axis.extent);
  const std::string location = message(1, "location") + message(2, "weights.bin");
  return bytes + number(2, tensor.type) + message(8, tensor.name) + message(13, location) + number(14, 1);
}

}  // namespace

std::string OnnxGraph::bytes() const {
  std::string graph = message(2, "graph");
  for (std::size_t i = 0; i < nodes.size(); ++i) graph += message(1, node(nodes[i], i));
  for (const OnnxTensor& tensor : initializers) graph += message(5, initializer(tensor));
  for (const OnnxTensor& tensor : inputs) graph += message(11, value_info(tensor));
  for (const OnnxTensor& tensor : outputs) graph += message(12, value_info(tensor));
  const auto opset = [](const std::string& domain, std::int64_t version) {
    return message(8, message(1, domain) + number(2, version));
  };
  return number(1, 10) + message(7, graph) + opset("", 20) + opset("ai.precast", 1);
}

}  // namespace precast::test
