"""The tree: longest prefixes, holding, splitting, evicting; nothing held is lost, nothing leaks."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apr_agents.engine.pool import Pool, Run, length_of
from apr_agents.engine.tree import Node, Tree, common

SLOTS = 60

some_ids = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def reserve(pool: Pool, count: int) -> list[Run]:
    runs: list[Run] = []
    while (missing := count - length_of(runs)) > 0:
        run = pool.take(missing)
        assert run is not None
        runs.append(run)
    return runs


def add(tree: Tree, ids: list[int]) -> Node:
    """Compute what of ``ids`` is not known; the node to let go."""
    match = tree.match(ids)
    node = tree.hold(match)
    return tree.insert(node, ids[match.length :], reserve(tree.pool, len(ids) - match.length))


def slots_on(path: list[Node]) -> list[int]:
    return [slot for node in path for run in node.runs for slot in range(run.start, run.end)]


def ids_on(path: list[Node]) -> list[int]:
    return [i for node in path for i in node.ids]


def all_nodes(tree: Tree) -> list[Node]:
    found, waiting = [], [*tree.root.children.values()]
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].children.values()
    return found


@dataclass
class Holder:
    """A sequence: what it holds, and which slots that must stay."""

    node: Node
    ids: list[int]
    slots: list[int]


class TreeAgainstItsHolders(RuleBasedStateMachine):
    """Sequences hold, add, let go; slots are evicted at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(SLOTS)
        self.tree = Tree(self.pool)
        self.holders: list[Holder] = []

    def holder(self, data: st.DataObject) -> Holder:
        return self.holders[data.draw(st.integers(0, len(self.holders) - 1))]

    @rule(ids=some_ids)
    def hold(self, ids: list[int]) -> None:
        match = self.tree.match(ids)
        longest = max(
            (common(ids_on(node.path()), ids) for node in all_nodes(self.tree)), default=0
        )
        assert match.length == longest
        node = self.tree.hold(match)
        assert ids_on(node.path()) == ids[: match.length]
        self.holders.append(Holder(node, ids[: match.length], slots_on(node.path())))

    @precondition(lambda self: self.holders)
    @rule(ids=some_ids, data=st.data())
    def insert(self, ids: list[int], data: st.DataObject) -> None:
        if self.pool.free + self.tree.loose < len(ids):
            return
        holder = self.holder(data)
        self.tree.evict(len(ids) - self.pool.free)
        holder.node = self.tree.insert(holder.node, ids, reserve(self.pool, len(ids)))
        holder.ids = holder.ids + ids
        assert ids_on(holder.node.path()) == holder.ids
        assert slots_on(holder.node.path())[: len(holder.slots)] == holder.slots
        holder.slots = slots_on(holder.node.path())

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        holder = self.holder(data)
        self.holders.remove(holder)
        self.tree.let_go(holder.node)

    @rule(slots=st.integers(1, SLOTS))
    def evict(self, slots: int) -> None:
        loose, free = self.tree.loose, self.pool.free
        assert self.tree.evict(slots) == min(slots, loose)
        assert self.pool.free == free + min(slots, loose)

    @invariant()
    def what_is_held_stays_where_it_is(self) -> None:
        for holder in self.holders:
            path = holder.node.path()
            assert ids_on(path) == holder.ids
            assert slots_on(path) == holder.slots

    @invariant()
    def it_is_a_radix_tree_that_counts_right(self) -> None:
        nodes = all_nodes(self.tree)
        for node in nodes:
            assert node.ids
            assert len(node.ids) == length_of(node.runs)
            assert node.parent is not None
            assert node.parent.children[node.ids[0]] is node
            assert node.holders == sum(node in holder.node.path() for holder in self.holders)
            assert node.parent is self.tree.root or node.parent.holders >= node.holders
        slots = slots_on(nodes)
        assert len(slots) == len(set(slots)) == self.tree.slots == SLOTS - self.pool.free
        assert self.tree.held == sum(len(node.ids) for node in nodes if node.holders)

    def teardown(self) -> None:
        for holder in self.holders:
            self.tree.let_go(holder.node)
        self.tree.evict(SLOTS)
        assert self.pool.free == SLOTS


TestTreeAgainstItsHolders = TreeAgainstItsHolders.TestCase
TestTreeAgainstItsHolders.settings = settings(max_examples=600, stateful_step_count=30)


def test_a_match_changes_nothing_and_holding_it_divides_the_node() -> None:
    tree = Tree(Pool(20))
    tree.let_go(add(tree, [1, 2, 3, 4]))
    match = tree.match([1, 2, 9])
    assert (match.within, match.length) == (2, 2)
    assert len(all_nodes(tree)) == 1
    version = tree.version
    node = tree.hold(match)
    assert node.ids == [1, 2]
    assert [child.ids for child in node.children.values()] == [[3, 4]]
    assert tree.version > version


def test_forks_share_the_slots_of_their_prefix() -> None:
    pool = Pool(20)
    tree = Tree(pool)
    first, second = add(tree, [1, 2, 3, 4]), add(tree, [1, 2, 7])
    assert pool.free == 20 - 5
    assert slots_on(first.path())[:2] == slots_on(second.path())[:2]


def test_the_same_tokens_computed_twice_are_kept_once() -> None:
    pool = Pool(20)
    tree = Tree(pool)
    root = tree.match([])
    nodes = [tree.hold(root), tree.hold(root)]
    ends = [tree.insert(node, [5, 6, 7], reserve(pool, 3)) for node in nodes]
    assert ends[0] is ends[1]
    assert pool.free == 17
    assert ends[0].holders == 2


def test_a_node_grows_while_nobody_else_holds_it() -> None:
    tree = Tree(Pool(20))
    node = add(tree, [1, 2])
    assert tree.insert(node, [3], reserve(tree.pool, 1)) is node
    assert node.runs == [Run(0, 3)]
    other = tree.hold(tree.match([1, 2, 3]))
    longer = tree.insert(other, [4], reserve(tree.pool, 1))
    assert longer is not node
    assert node.ids == [1, 2, 3]


def test_the_longest_unused_goes_first_and_from_its_end() -> None:
    pool = Pool(20)
    tree = Tree(pool)
    for ids in ([1, 2, 3, 4], [5, 6, 7, 8]):
        tree.let_go(add(tree, ids))
    tree.let_go(tree.hold(tree.match([1, 2, 3, 4])))
    assert tree.evict(3) == 3
    assert [tree.match(ids).length for ids in ([1, 2, 3, 4], [5, 6, 7, 8])] == [4, 1]


def test_what_is_held_is_never_evicted_and_what_hangs_below_it_is() -> None:
    tree = Tree(Pool(20))
    held = add(tree, [1, 2])
    tree.let_go(add(tree, [1, 2, 3, 4]))
    assert tree.loose == 2
    assert tree.evict(20) == 2
    assert ids_on(held.path()) == [1, 2]


@given(some_ids, some_ids, st.integers(0, 3))
def test_common_counts_equal_tokens(stretch: list[int], ids: list[int], start: int) -> None:
    count = 0
    for one, other in zip(stretch, ids[start:], strict=False):
        if one != other:
            break
        count += 1
    assert common(stretch, ids, start) == count
