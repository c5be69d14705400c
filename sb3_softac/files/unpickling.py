"""Reading pickles without running what they ask for.

A pickle is a program for a machine with a stack. This machine knows the same instructions as Python's, but it asks a list
(:class:`Rules`) before it looks up a name, calls something, or changes an object: what may be *named* in a file is not what
may be *called* by it. It never imports a module, and it never reads or allocates more than the file has.
"""

import pickle
import struct
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

CHUNK = 1 << 16
#: what a key of a dict, or an element of a set, may be: hashing anything else could take forever
KEYS = (str, int, float, bool, bytes, type(None))


def printable(text: Any) -> str:
    """What a file says, without what would change a terminal."""
    shown = ascii(str(text))[1:-1].replace("\\'", "'").replace("\\\\", "\\")
    return shown if len(shown) <= 500 else f"{shown[:500]}..."


class Refusal(Exception):
    """A file asks for what is not on the list; the message names it."""


class Damage(Exception):
    """A file cannot be read; the message says why."""


class Source:
    """A seekable binary file, of which no more is read than there is, with the CRC-32 of what was read.

    :param file: it is read from where it is
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        start = file.tell()
        self.size = file.seek(0, 2) - start
        file.seek(start)
        self._unread = self.size  # behind the chunk
        self.chunk, self.at = b"", 0
        self._checksum = 0

    @property
    def remaining(self) -> int:
        return self._unread + len(self.chunk) - self.at

    def read(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.chunk):
            if size > self.remaining:
                raise Damage("it ends too early")
            self._refill(size)
            end = size
        read = self.chunk[self.at : end]
        self.at = end
        return read

    def _refill(self, size: int) -> None:
        self._checksum = zlib.crc32(self.chunk[: self.at], self._checksum)
        rest = self.chunk[self.at :]
        wanted = min(self._unread, max(size - len(rest), CHUNK))
        more = self.file.read(wanted)
        if len(more) != wanted:
            raise Damage("it ends too early")
        self._unread -= wanted
        self.chunk, self.at = rest + more, 0

    def read_array(self, size: int) -> bytearray:
        """``size`` bytes, in memory of their own; a large array is read into its place, not copied."""
        if size > self.remaining:
            raise Damage("it ends too early")
        array = bytearray(size)
        held = min(size, len(self.chunk) - self.at)
        array[:held] = self.read(held)
        view, done = memoryview(array), held
        while done < size:
            block = self.file.read(min(size - done, 1 << 22))
            if not block:
                raise Damage("it ends too early")
            view[done : done + len(block)] = block
            self._checksum = zlib.crc32(block, zlib.crc32(self.chunk[: self.at], self._checksum))
            self.chunk, self.at = b"", 0
            self._unread -= len(block)
            done += len(block)
        return array

    def read_line(self) -> bytes:
        line = bytearray()
        while (byte := self.read(1)) != b"\n":
            line += byte
            if len(line) > 1000:
                raise Damage("it has a name of more than 1000 bytes")
        return bytes(line)

    def checksum(self) -> int:
        """Of all that was read."""
        self._checksum = zlib.crc32(self.chunk[: self.at], self._checksum)
        self.chunk, self.at = self.chunk[self.at :], 0
        return self._checksum

    def leave(self) -> None:
        """Put the file to where reading has ended."""
        self.file.seek(-(len(self.chunk) - self.at), 1)


class Rules(Protocol):
    """What a pickle may do; each method raises :class:`Refusal`, or :class:`Damage` for values of a wrong form."""

    def resolve(self, module: str, name: str) -> Any:
        """The object that a file means by a name."""

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The result of a call."""

    def create(self, cls: Any, arguments: tuple[Any, ...]) -> Any:
        """A new object, without its constructor."""

    def build(self, instance: Any, state: Any) -> None:
        """Give a new object its state."""


class Machine:
    """Reads one pickle.

    :param source: where it is read from
    :param rules: what it may do
    :param max_steps: how many instructions it may have
    """

    def __init__(self, source: Source, rules: Rules, max_steps: int) -> None:
        self.source, self.rules, self.max_steps = source, rules, max_steps
        self.steps = 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle stands for.

        :raises Refusal: it asks for what is not on the list
        :raises Damage: it cannot be read
        """
        source, instructions, stop = self.source, TABLE, pickle.STOP[0]
        try:
            while True:
                if source.at < len(source.chunk):  # what `read` would do, without the call
                    code = source.chunk[source.at]
                    source.at += 1
                else:
                    code = source.read(1)[0]
                if code == stop:
                    break
                self.steps += 1
                if self.steps > self.max_steps:
                    raise Damage("it has far more instructions than a model or a replay buffer needs")
                instruction = instructions[code]
                if instruction is None:
                    raise Damage(f"{code} is no instruction of a pickle")
                instruction(self)
            if len(self.stack) != 1 or self.marked:
                raise Damage("it leaves something unfinished")
            return self.stack.pop()
        except (Refusal, Damage):
            raise
        except Exception as error:  # all of it comes from values of a wrong form: nothing else runs here
            raise Damage(f"{type(error).__name__}: {error}") from error

    # --- what instructions share ---

    def number(self, size: int) -> int:
        return int.from_bytes(self.source.read(size), "little")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise Damage("it takes a value that is not there")
        return self.stack.pop()

    def top(self, *types: type) -> Any:
        """The last value, of exactly one of these types: no method of another class is ever called."""
        if not self.stack or type(self.stack[-1]) not in types:
            raise Refusal(f"a {type(self.stack[-1]).__name__} that is filled like a container" if self.stack else "nothing")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marked:
            raise Damage("it takes a mark that is not there")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def pop_tuple(self) -> tuple[Any, ...]:
        arguments = self.pop()
        if type(arguments) is not tuple:
            raise Damage(f"it calls something with a {type(arguments).__name__}")
        return arguments

    def memoize(self) -> None:
        memo, stack = self.memo, self.stack
        if not stack:
            raise Damage("it takes a value that is not there")
        memo[len(memo)] = stack[-1]

    def put(self, index: int) -> None:
        if not self.stack:
            raise Damage("it takes a value that is not there")
        self.memo[index] = self.stack[-1]

    # --- instructions that can be abused ---

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def set_items(self, values: list[Any]) -> None:
        target = self.top(dict, OrderedDict)
        if len(values) % 2:
            raise Damage("a key has no value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[self.key(key)] = value

    def key(self, key: Any) -> Any:
        parts = key if type(key) is tuple else (key,)
        if not all(type(part) in KEYS for part in parts):
            raise Damage(f"a key is a {type(key).__name__}")
        return key

    def extend(self, values: list[Any]) -> None:
        self.top(list, deque).extend(values)

    def add_items(self) -> None:
        values = self.pop_mark()
        self.top(set).update(map(self.key, values))

    def make_dict(self) -> None:
        values = self.pop_mark()
        self.push({})
        self.set_items(values)

    def named(self) -> None:
        module, name = self.source.read_line().decode(), self.source.read_line().decode()
        self.push(self.rules.resolve(module, name))

    def named_by_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise Damage("a name is no text")
        self.push(self.rules.resolve(module, name))

    def reduce(self) -> None:
        arguments = self.pop_tuple()
        self.push(self.rules.call(self.pop(), arguments))

    def new_object(self) -> None:
        arguments = self.pop_tuple()
        self.push(self.rules.create(self.pop(), arguments))

    def build(self) -> None:
        state = self.pop()
        if not self.stack:
            raise Damage("it takes a value that is not there")
        self.rules.build(self.stack[-1], state)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def append(self) -> None:
        value = self.pop()
        self.extend([value])

    def tuple_of(self, size: int) -> None:
        if len(self.stack) < size:
            raise Damage("it takes a value that is not there")
        values = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.push(values)

    def long(self, size: int) -> None:
        if size > 4096:
            raise Damage("a number has more than 4096 bytes")
        self.push(int.from_bytes(self.source.read(size), "little", signed=True))

    def pop_one(self) -> None:
        """Also a mark, as Python's machine does."""
        self.pop() if self.stack else self.pop_mark()

    def refuse(self, name: str) -> None:
        raise Refusal(f"the instruction {name}")


def _text(data: bytes) -> str:
    return str(data, "utf-8", "surrogatepass")


Instruction = Callable[[Machine], Any]
INSTRUCTIONS: dict[bytes, Instruction] = {
    pickle.PROTO: lambda m: m.source.read(1),
    pickle.FRAME: lambda m: m.source.read(8),
    pickle.MARK: Machine.mark,
    pickle.POP: Machine.pop_one,
    pickle.POP_MARK: lambda m: m.pop_mark(),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(int.from_bytes(m.source.read(4), "little", signed=True)),
    pickle.BININT1: lambda m: m.push(m.number(1)),
    pickle.BININT2: lambda m: m.push(m.number(2)),
    pickle.LONG1: lambda m: m.long(m.number(1)),
    pickle.LONG4: lambda m: m.long(m.number(4)),
    pickle.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.source.read(8))[0]),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.source.read(m.number(1))),
    pickle.BINBYTES: lambda m: m.push(m.source.read(m.number(4))),
    pickle.BINBYTES8: lambda m: m.push(m.source.read(m.number(8))),
    pickle.BYTEARRAY8: lambda m: m.push(m.source.read_array(m.number(8))),
    pickle.SHORT_BINUNICODE: lambda m: m.push(_text(m.source.read(m.number(1)))),
    pickle.BINUNICODE: lambda m: m.push(_text(m.source.read(m.number(4)))),
    pickle.BINUNICODE8: lambda m: m.push(_text(m.source.read(m.number(8)))),
    pickle.EMPTY_LIST: lambda m: m.stack.append([]),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.EMPTY_DICT: lambda m: m.stack.append({}),
    pickle.EMPTY_SET: lambda m: m.push(set()),
    pickle.LIST: lambda m: m.push(m.pop_mark()),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_mark())),
    pickle.DICT: Machine.make_dict,
    pickle.FROZENSET: lambda m: m.push(frozenset(map(m.key, m.pop_mark()))),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.APPEND: Machine.append,
    pickle.APPENDS: lambda m: m.extend(m.pop_mark()),
    pickle.SETITEM: Machine.set_item,
    pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
    pickle.ADDITEMS: Machine.add_items,
    pickle.MEMOIZE: Machine.memoize,
    pickle.BINPUT: lambda m: m.put(m.number(1)),
    pickle.LONG_BINPUT: lambda m: m.put(m.number(4)),
    pickle.BINGET: lambda m: m.stack.append(m.memo[m.number(1)]),
    pickle.LONG_BINGET: lambda m: m.stack.append(m.memo[m.number(4)]),
    pickle.GLOBAL: Machine.named,
    pickle.STACK_GLOBAL: Machine.named_by_stack,
    pickle.REDUCE: Machine.reduce,
    pickle.NEWOBJ: Machine.new_object,
    pickle.BUILD: Machine.build,
    # Instructions of the first protocol, for files made by hand: they are there to be refused for what they ask.
    pickle.INT: lambda m: m.push(int(m.source.read_line())),
    pickle.LONG: lambda m: m.push(int(m.source.read_line().rstrip(b"L"))),
    pickle.FLOAT: lambda m: m.push(float(m.source.read_line())),
    pickle.STRING: lambda m: m.push(m.source.read_line().decode("latin-1").strip("'\"")),
    pickle.UNICODE: lambda m: m.push(m.source.read_line().decode("raw-unicode-escape")),
    pickle.SHORT_BINSTRING: lambda m: m.push(m.source.read(m.number(1)).decode("latin-1")),
    pickle.BINSTRING: lambda m: m.push(m.source.read(m.number(4)).decode("latin-1")),
    pickle.PUT: lambda m: m.put(int(m.source.read_line())),
    pickle.GET: lambda m: m.push(m.memo[int(m.source.read_line())]),
    pickle.DUP: lambda m: m.push(m.stack[-1]),
    # No file of a model or a replay buffer has these: they call classes, or ask for objects of another program.
    pickle.INST: lambda m: m.refuse(f"INST of {m.source.read_line().decode()}.{m.source.read_line().decode()}"),
    pickle.OBJ: lambda m: m.refuse("OBJ"),
    pickle.NEWOBJ_EX: lambda m: m.refuse("NEWOBJ_EX"),
    pickle.PERSID: lambda m: m.refuse("PERSID"),
    pickle.BINPERSID: lambda m: m.refuse("BINPERSID"),
    pickle.EXT1: lambda m: m.refuse("EXT1"),
    pickle.EXT2: lambda m: m.refuse("EXT2"),
    pickle.EXT4: lambda m: m.refuse("EXT4"),
    pickle.NEXT_BUFFER: lambda m: m.refuse("NEXT_BUFFER"),
    pickle.READONLY_BUFFER: lambda m: m.refuse("READONLY_BUFFER"),
}
#: the same, by number
TABLE = [INSTRUCTIONS.get(bytes([code])) for code in range(256)]
