#include "runtime/native/src/prefix_tree.h"

#include <cstdint>
#include <vector>

#include "tests/native/check.h"

using namespace precast;

namespace {

using Ids = std::vector<std::int32_t>;

constexpr BlockKey root{0, 1};
constexpr BlockKey key{0, 2};

}  // namespace

TEST("prefix tree: a node is found by its key, if parent and tokens are its own too") {
  PrefixTree tree(1, 4);
  PrefixNode* node = tree.insert(key, root, Ids{5, 6}, 0);
  tree.set_block(*node, 0, 3);
  CHECK(tree.find(key, root, Ids{5, 6}) == node);
  CHECK(tree.find(key, root, Ids{5, 7}) == nullptr);
  CHECK(tree.find(key, key, Ids{5, 6}) == nullptr);
  CHECK(tree.find(root, root, Ids{5, 6}) == nullptr);
  CHECK(tree.insert(key, root, Ids{5, 6}, 0) == node);
  CHECK(tree.owner(3) == node);
  CHECK(tree.owner(0) == nullptr);
  tree.check_integrity();
}

TEST("prefix tree: of two contents with one key the first stays, and the second is not there") {
  PrefixTree tree(1, 4);
  PrefixNode* node = tree.insert(key, root, Ids{5, 6}, 0);
  tree.set_block(*node, 0, 0);
  CHECK(tree.insert(key, root, Ids{7, 8}, 0) == nullptr);
  CHECK(tree.insert(key, BlockKey{9, 9}, Ids{5, 6}, 0) == nullptr);
  CHECK(tree.find(key, root, Ids{7, 8}) == nullptr);
  CHECK_EQ(tree.size(), 1U);
}

TEST("prefix tree: a node is gone with the last of its groups' blocks") {
  PrefixTree tree(2, 4);
  PrefixNode* node = tree.insert(key, root, Ids{5, 6}, 0);
  tree.set_block(*node, 0, 1);
  tree.set_block(*node, 1, 2);
  CHECK(!tree.remove_block(1).has_value());
  CHECK(node->blocks == Ids({-1, 2}));
  tree.check_integrity();
  CHECK(tree.remove_block(2) == key);
  CHECK_EQ(tree.size(), 0U);
  CHECK(tree.find(key) == nullptr);
  tree.check_integrity();
}

TEST("prefix tree: misuse is a defect") {
  PrefixTree tree(1, 2);
  PrefixNode* node = tree.insert(key, root, Ids{5}, 0);
  tree.set_block(*node, 0, 1);
  CHECK_THROWS(tree.set_block(*node, 0, 0));
  CHECK_THROWS(tree.set_block(*tree.insert(root, key, Ids{5}, 1), 0, 1));
  CHECK_THROWS(tree.remove_block(0));
  CHECK_THROWS(tree.owner(2));
}
