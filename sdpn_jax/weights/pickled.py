"""Reads the pickle of a checkpoint: an interpreter of the instructions that `torch.save` writes, and of no others.

Python's own runs what a pickle asks for, hashes, compares and prints what it holds, and nests as deep as it wants to.
This one makes dictionaries, lists, tuples, texts and numbers; imports, calls and storages are for a subclass to know.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

from sdpn_jax.errors import shown

MOST_BYTES = 16 << 20  # of a pickle; that of a checkpoint of 500 tensors and their optimizer has 0.1 MB
MOST_INSTRUCTIONS = 1_000_000  # that one has 20,000; a million take seconds and some hundred megabytes
MOST_DEPTH = 100  # of containers in each other; a checkpoint has five
VALUES = frozenset(
    "BININT BININT1 BININT2 INT LONG LONG1 FLOAT BINFLOAT "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
SKIPPED = ("PROTO", "FRAME")


@dataclass(frozen=True)
class Name:
    """What a pickle imports, never looked up: "module.name"."""

    full: str


class Interpreter:
    """Runs one pickle; subclasses say what its imports, calls and storages are, and raise what they want for others.

    They are given whatever the pickle holds, which must be neither hashed, compared nor printed before it is known.
    """

    def __init__(self):
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}
        self._depths: dict[int, int] = {}  # of containers, by identity
        self._kept: list[Any] = []  # all containers: identities are not given twice
        self._closed: set[int] = set()  # containers inside others, which change no more: none can come to hold itself

    def run(self, data: bytes) -> Any:
        """Returns the value that a pickle builds; raises ValueError, or what pickletools raises, for other bytes."""
        if len(data) > MOST_BYTES:
            raise ValueError(f"a pickle of {len(data)} bytes")
        argument: Any
        for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MOST_INSTRUCTIONS:
                raise ValueError(f"a pickle of more than {MOST_INSTRUCTIONS} instructions")
            name = instruction.name
            if name == "STOP":
                return self._pop()
            if name in VALUES:
                self._stack.append(argument)
            elif name in CONSTANTS:
                self._stack.append(CONSTANTS[name])
            elif name in PUTS:
                if argument > count:  # Python's pickler counts from 0
                    raise ValueError(f"value {shown(argument)} remembered after {count} instructions")
                self._memo[argument] = self._top()
            elif name in GETS:
                self._stack.append(self._remembered(argument))
            elif name in TUPLES:
                self._push(tuple(reversed([self._pop() for _ in range(TUPLES[name])])))
            elif name in SKIPPED:
                pass
            elif step := getattr(self, f"_do_{name.lower()}", None):
                step(argument)
            else:
                raise ValueError(f"the instruction {name}, which PyTorch does not write")
        raise ValueError("a pickle without an end")

    def admit(self, name: Name) -> None:
        """Raises an error for an import that is not wanted."""
        raise NotImplementedError

    def call(self, name: Name, arguments: tuple) -> Any:
        """Returns the value of an admitted import called with arguments."""
        raise NotImplementedError

    def stored(self, description: Any) -> Any:
        """Returns the value that lies outside of the pickle."""
        raise NotImplementedError

    def _do_mark(self, _) -> None:
        self._marks.append(len(self._stack))

    def _do_memoize(self, _) -> None:
        self._memo[len(self._memo)] = self._top()

    def _do_global(self, names: str) -> None:
        self._import(".".join(names.split(" ", 1)))

    def _do_stack_global(self, _) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("the name of an import that is no text")
        self._import(f"{module}.{name}")

    def _import(self, full: str) -> None:
        name = Name(full)
        self.admit(name)
        self._stack.append(name)

    def _do_empty_dict(self, _) -> None:
        self._push({})

    def _do_empty_list(self, _) -> None:
        self._push([])

    def _do_tuple(self, _) -> None:
        self._push(tuple(self._since_mark()))

    def _do_list(self, _) -> None:
        self._push(self._since_mark())

    def _do_dict(self, _) -> None:
        items = self._since_mark()
        self._push({})
        self._set(items)

    def _do_append(self, _) -> None:
        self._extend([self._pop()])

    def _do_appends(self, _) -> None:
        self._extend(self._since_mark())

    def _do_setitem(self, _) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _do_setitems(self, _) -> None:
        self._set(self._since_mark())

    def _do_binpersid(self, _) -> None:
        self._stack.append(self.stored(self._pop()))

    def _do_reduce(self, _) -> None:
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, Name) or type(arguments) is not tuple:
            raise ValueError(f"a call of a {type(name).__name__}")
        self._push(self.call(name, arguments))

    def _do_build(self, _) -> None:
        """Drops the attributes that a pickle would set: of dictionaries of weights, the versions of modules."""
        self._pop()
        self._top()

    def _extend(self, items: list) -> None:
        target = self._open(list)
        target.extend(items)
        self._put_in(target, items)

    def _set(self, items: list) -> None:
        target = self._open(dict)
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values):
            raise ValueError("a dictionary with a key without a value")
        for key in keys:
            # Others hash slowly, or (huge numbers) alike.
            if type(key) not in (str, int, float, bool, type(None)) or (type(key) is int and abs(key) >= 2**63):
                raise ValueError(f"a dictionary with a key that is a {type(key).__name__}, no text or usual number")
        target.update(zip(keys, values, strict=True))
        self._put_in(target, values)

    def _open(self, kind: type) -> Any:
        """The container on top, which must be of this kind and not yet be inside another."""
        target = self._top()
        if type(target) is not kind or id(target) in self._closed:
            raise ValueError(f"a {type(target).__name__} that is filled as no complete {kind.__name__} can be")
        return target

    def _push(self, value: Any) -> None:
        """Puts a value on the stack, which may be a new container."""
        self._stack.append(value)
        if type(value) in (dict, list, tuple) and id(value) not in self._depths:
            self._kept.append(value)
            self._depths[id(value)] = 1
            self._put_in(value, value if type(value) is not dict else value.values())

    def _put_in(self, container: Any, items: Any) -> None:
        """Notes that a container holds these items."""
        inside = [id(item) for item in items if type(item) in (dict, list, tuple)]
        self._closed.update(inside)
        if id(container) in self._closed:
            raise ValueError("a container that holds itself")
        depth = max([self._depths[id(container)], *(1 + self._depths[each] for each in inside)])
        if depth > MOST_DEPTH:
            raise ValueError(f"containers in each other, more than {MOST_DEPTH} deep")
        self._depths[id(container)] = depth

    def _remembered(self, index: int) -> Any:
        if index not in self._memo:
            raise ValueError("a value that was not remembered")
        return self._memo[index]

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("an instruction without a value")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        self._stack.pop()
        return value

    def _since_mark(self) -> list:
        if not self._marks:
            raise ValueError("an instruction without a mark")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items
