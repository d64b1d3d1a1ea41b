"""What JAX traces of a function, written as an ONNX graph, sizes that are known only when it runs included.

Needs the package onnx. Everything that depends on weights alone is computed here, by JAX. Operators are those of
version 13 of ONNX, the first with a step of int8 for each channel: onnxruntime reads them since 1.6, and so do most
other runtimes.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend.core import Literal
from onnx import helper, numpy_helper

from sdpn_jax.errors import UserError

OPSET, IR_VERSION = 13, 7
TYPES = {np.dtype(name) for name in ("float32", "int32", "int64", "bool")}
Value: TypeAlias = np.ndarray | str  # numbers known now, or the name of a tensor
Size: TypeAlias = Any  # an int, or JAX's expression of sizes such as floordiv(T - 1, 2) + 1
CALLS = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
}  # and where they keep what they call
ELEMENTWISE = {
    "abs": "Abs", "add": "Add", "and": "And", "div": "Div", "eq": "Equal", "exp": "Exp", "ge": "GreaterOrEqual",
    "gt": "Greater", "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "min": "Min", "mul": "Mul",
    "neg": "Neg", "not": "Not", "or": "Or", "sign": "Sign", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip


class Graph:
    """The nodes and constants of a graph in the making."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple, str] = {}  # of constants, by content
        self._sizes: dict[str, Value] = {}  # int64 [1] of each expression of sizes met so far

    def add(self, operator: str, *inputs: Value, **attributes) -> str:
        """Adds a node of one output, whose name is returned."""
        return self.add_many(1, operator, *inputs, **attributes)[0]

    def add_many(self, count: int, operator: str, *inputs: Value, **attributes) -> list[str]:
        """Adds a node of `count` outputs, whose names are returned."""
        name = f"{operator}_{len(self.nodes)}"
        outputs = [f"{name}_{i}" if i else name for i in range(count)]
        self.nodes.append(helper.make_node(operator, [self.named(x) for x in inputs], outputs, name, **attributes))
        return outputs

    def named(self, value: Value) -> str:
        """Returns the name of a value; numbers become a constant, the same numbers only once."""
        if isinstance(value, str):
            return value
        key = value.dtype, value.shape, value.tobytes()
        name = self._names.setdefault(key, f"constant_{len(self._names)}")
        self.constants[name] = value
        return name

    def inline(self, function: Callable, x: str, sizes: Sequence[Size], result: str) -> tuple[Size, ...]:
        """Adds what `function` makes of the float32 tensor x, and calls it `result`; returns its sizes.

        `sizes` of x are numbers and JAX's symbols (jax.export.symbolic_shape). Raises UserError for what this file
        cannot write.
        """
        closed, described = jax.make_jaxpr(function, return_shape=True)(jax.ShapeDtypeStruct(tuple(sizes), jnp.float32))
        shape = self.add("Shape", x)
        self._sizes = {
            str(size): self.add("Gather", shape, np.array([i])) for i, size in enumerate(sizes) if not is_known(size)
        }
        made = self.named(self._run(closed.jaxpr, closed.consts, [x])[0])
        self.nodes.append(helper.make_node("Identity", [made], [result]))
        return described.shape

    def model(
        self,
        inputs: Mapping[str, Sequence[Size]],
        outputs: Mapping[str, Sequence[Size]],
        facts: Mapping[str, str],
        narrowed: Mapping[str, str],
    ) -> bytes:
        """Returns the file of the graph between float32 tensors of these names and sizes.

        facts: the file's metadata. narrowed: names of constants that are kept as "float16" or "int8".
        """
        constants, nodes = {}, []
        for name, value in self.constants.items():
            parts, widening = NARROWED[narrowed[name]](name, value) if name in narrowed else ({name: value}, [])
            constants |= parts
            nodes += widening
        ends = [[_float32(name, sizes) for name, sizes in tensors.items()] for tensors in (inputs, outputs)]
        stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        model = helper.make_model(
            helper.make_graph([*nodes, *self.nodes], "sdpn_jax", *ends, initializer=stored),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="sdpn_jax",
        )
        helper.set_model_props(model, dict(facts))
        return model.SerializeToString()

    def _run(self, jaxpr: Any, constants: Sequence, arguments: Sequence[Value]) -> list[Value]:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(np.asarray, constants), *arguments], strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                aval: Any = atom.aval
                return np.asarray(atom.val, aval.dtype)
            return values[atom]

        for equation in jaxpr.eqns:
            outputs = self._write(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _write(self, equation: Any, inputs: list[Value]) -> Sequence[Value]:
        name, parameters = equation.primitive.name, equation.params
        if name == "jit" and parameters["name"] == "rectified":  # of models/resnet.py
            return [self.add("Relu", *inputs)]
        if name in ("platform_index", "optimization_barrier"):
            # Of functions for several platforms the last is for any other.
            return [np.asarray(len(parameters["platforms"]) - 1)] if name == "platform_index" else inputs
        if name == "cond" and isinstance(inputs[0], np.ndarray):
            branch = parameters["branches"][int(inputs[0])]
            return self._run(branch.jaxpr, branch.consts, inputs[1:])
        if name in CALLS:
            inner = parameters[CALLS[name]]
            return self._run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
        sizes = [size for output in equation.outvars for size in output.aval.shape]
        if name != "dim_as_value" and all(map(is_known, sizes)) and not any(isinstance(x, str) for x in inputs):
            outputs = equation.primitive.bind(*inputs, **parameters)
            return [np.asarray(x) for x in (outputs if equation.primitive.multiple_results else [outputs])]
        if odd := {str(output.aval.dtype) for output in equation.outvars if output.aval.dtype not in TYPES}:
            raise UserError(f"ONNX is written of float32 alone: {name} computes in {odd.pop()}, set dtype to float32")
        if name in ELEMENTWISE:
            return [self.add(ELEMENTWISE[name], *inputs)]
        write = getattr(self, f"_write_{name}", None)
        if write is None:
            raise UserError(f"ONNX cannot be written: {name} of JAX is none of the operations that onnx_graph.py knows")
        written = write(equation, *inputs, **parameters)
        return written if isinstance(written, list) else [written]

    def size(self, size: Size) -> Value:
        """Returns a size as int64 [1]."""
        if is_known(size):
            return np.array([size], np.int64)
        text = str(size)
        if text not in self._sizes:
            self._sizes[text] = self._expression(ast.parse(text.replace("^", "**"), mode="eval").body)
        return self._sizes[text]

    def _expression(self, node: ast.AST) -> Value:
        """Computes what JAX prints of a size: + - * ^ floordiv mod max min of symbols and numbers."""
        match node:
            case ast.Constant(value=int(number)):
                return np.array([number], np.int64)
            case ast.Name(id=symbol):
                return self._sizes[symbol]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add("Neg", self._expression(operand))
            case ast.BinOp(left=left, op=operator, right=right):
                name = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}[type(operator)]
                return self.add(name, self._expression(left), self._expression(right))
            case ast.Call(func=ast.Name(id="mod" | "max" | "min" as name), args=[left, right]):
                return self.add(name.capitalize(), self._expression(left), self._expression(right))
            case ast.Call(func=ast.Name(id="floordiv"), args=[left, right]):
                left, right = self._expression(left), self._expression(right)
                # Div cuts towards zero, Mod has the sign of the divisor.
                return self.add("Div", self.add("Sub", left, self.add("Mod", left, right)), right)
        raise UserError(f"ONNX cannot be written: the size {ast.unparse(node)} is none that onnx_graph.py can compute")

    def sizes(self, sizes: Sequence[Size]) -> Value:
        """Returns sizes as int64 [n]."""
        if all(map(is_known, sizes)):
            return np.array(sizes, np.int64)
        return self.add("Concat", *[self.size(size) for size in sizes], axis=0)

    # One method for each primitive of JAX: its equation, its operands, its parameters.

    def _write_broadcast_in_dim(self, equation, x, *_, shape, broadcast_dimensions, **__):
        new = [axis for axis in range(len(shape)) if axis not in broadcast_dimensions]
        before = [1] * len(shape)
        for axis, size in zip(broadcast_dimensions, equation.invars[0].aval.shape, strict=True):
            before[axis] = size
        if new:
            x = self.add("Unsqueeze", x, np.array(new))
        return x if tuple(before) == tuple(shape) else self.add("Expand", x, self.sizes(shape))

    def _write_concatenate(self, equation, *inputs, dimension):
        return self.add("Concat", *inputs, axis=dimension)

    def _write_conv_general_dilated(
        self, equation, x, kernel, *, dimension_numbers, window_strides, padding, lhs_dilation, rhs_dilation,
        feature_group_count, batch_group_count, **_,
    ):  # fmt: skip
        if set(lhs_dilation) != {1} or batch_group_count != 1 or not all(is_known(n) for ends in padding for n in ends):
            raise UserError("ONNX cannot be written of transposed convolutions, nor of paddings that depend on lengths")
        of_x, of_kernel, of_result = dimension_numbers
        result = self.add(
            "Conv",
            self._transposed(x, of_x),
            self._transposed(kernel, of_kernel),
            strides=window_strides,
            pads=[before for before, _ in padding] + [after for _, after in padding],
            dilations=rhs_dilation,
            group=feature_group_count,
        )
        return self._transposed(result, [of_result.index(axis) for axis in range(len(of_result))])

    def _write_convert_element_type(self, equation, x, *, new_dtype, **_):
        return self._cast(x, new_dtype)

    def _write_dim_as_value(self, equation, *, dim):
        scalar = self.add("Reshape", self.size(dim), np.array([], np.int64))
        return self._cast(scalar, equation.outvars[0].aval.dtype)

    def _write_dot_general(self, equation, x, y, *, dimension_numbers, **_):
        contracted, batch = dimension_numbers
        ranks = [len(operand.aval.shape) for operand in equation.invars]
        leading = len(batch[0])
        both_lead = all(tuple(axes) == tuple(range(leading)) for axes in batch)
        by_matrix = contracted == ((ranks[0] - 1,), (leading,)) and ranks[1] == leading + 2
        if not (both_lead and by_matrix and (leading == 0 or ranks[0] == ranks[1])):
            raise UserError(f"ONNX cannot be written of products other than of matrices: {dimension_numbers}")
        return self.add("MatMul", x, y)

    def _write_gather(self, equation, x, index, *, dimension_numbers, slice_sizes, mode, **_):
        shape, rank = equation.invars[0].aval.shape, len(equation.invars[1].aval.shape)
        axes, dropped = dimension_numbers.start_index_map, dimension_numbers.collapsed_slice_dims
        kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
        simple = mode == jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS and all(shape[i] == slice_sizes[i] for i in kept)
        if simple and rank == 1:
            first = self._cast(index, np.int64)
            last = self.add("Add", first, self.sizes([slice_sizes[axis] for axis in axes]))
            x = self.add("Slice", x, first, last, np.array(axes))
            return self.add("Squeeze", x, np.array(dropped)) if dropped else x
        if simple and rank == 2 and dropped == axes and kept == dimension_numbers.offset_dims:
            return self.add("Gather", x, self.add("Squeeze", index, np.array([1])), axis=axes[0])
        raise UserError("ONNX cannot be written of indexing other than by slices and by one list of numbers")

    def _write_integer_pow(self, equation, x, *, y):
        return self.add("Pow", x, np.asarray(y, equation.outvars[0].aval.dtype))

    def _write_iota(self, equation, *_, dtype, shape, dimension, **__):
        end = self.add("Reshape", self.size(shape[dimension]), np.array([], np.int64))
        numbers = self.add("Range", np.array(0), end, np.array(1))
        numbers = self._cast(numbers, dtype)
        others = [axis for axis in range(len(shape)) if axis != dimension]
        if others:
            numbers = self.add("Expand", self.add("Unsqueeze", numbers, np.array(others)), self.sizes(shape))
        return numbers

    def _write_max(self, equation, x, y):
        rectified = isinstance(y, np.ndarray) and not y.any() and y.shape == () and y.dtype == np.float32
        return self.add("Relu", x) if rectified else self.add("Max", x, y)

    def _write_ne(self, equation, x, y):
        return self.add("Not", self.add("Equal", x, y))

    def _write_pad(self, equation, x, value, *, padding_config):
        if any(interior for _, _, interior in padding_config):
            raise UserError("ONNX cannot be written of padding between the numbers of an array")
        ends = [low for low, _, _ in padding_config] + [high for _, high, _ in padding_config]
        return self.add("Pad", x, self.sizes(ends), value)

    def _write_reduce_max(self, equation, x, *, axes, **_):
        return self.add("ReduceMax", x, axes=axes, keepdims=0)

    def _write_reduce_sum(self, equation, x, *, axes, **_):
        return self.add("ReduceSum", x, np.array(axes), keepdims=0)

    def _write_rem(self, equation, x, y):
        return self.add("Mod", x, y, fmod=1)

    def _write_reshape(self, equation, x, *_, new_sizes, **__):
        return self.add("Reshape", x, self.sizes(new_sizes))

    def _write_rev(self, equation, x, *, dimensions):
        count = len(dimensions)
        ends = np.full(count, np.iinfo(np.int64).min)
        return self.add("Slice", x, np.full(count, -1), ends, np.array(dimensions), np.full(count, -1))

    def _write_rsqrt(self, equation, x, **_):
        return self.add("Reciprocal", self.add("Sqrt", x))

    def _write_select_n(self, equation, which, if_false, if_true):
        return self.add("Where", which, if_true, if_false)

    def _write_slice(self, equation, x, *, start_indices, limit_indices, strides):
        axes = np.arange(len(start_indices))
        strides = np.ones_like(axes) if strides is None else np.array(strides)
        return self.add("Slice", x, self.sizes(start_indices), self.sizes(limit_indices), axes, strides)

    def _write_split(self, equation, x, *, sizes, axis):
        return self.add_many(len(sizes), "Split", x, self.sizes(sizes), axis=axis)

    def _write_square(self, equation, x):
        return self.add("Mul", x, x)

    def _write_squeeze(self, equation, x, *, dimensions):
        return self.add("Squeeze", x, np.array(dimensions))

    def _write_stop_gradient(self, equation, x):
        return x

    def _write_transpose(self, equation, x, *, permutation):
        return self._transposed(x, permutation)

    def _cast(self, x: Value, dtype: Any) -> Value:
        if isinstance(x, np.ndarray):
            return x.astype(dtype)
        return self.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _transposed(self, x: Value, permutation: Sequence[int]) -> Value:
        if isinstance(x, np.ndarray):
            return np.ascontiguousarray(x.transpose(permutation))
        return x if list(permutation) == sorted(permutation) else self.add("Transpose", x, perm=list(permutation))


def _float32(name: str, sizes: Sequence[Size]) -> onnx.ValueInfoProto:
    shape = [size if is_known(size) else str(size) for size in sizes]
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _as_float16(name: str, value: np.ndarray) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    """Half the bytes: rounded to float16, widened when it runs."""
    half = f"{name}_half"
    return {half: value.astype(np.float16)}, [helper.make_node("Cast", [half], [name], to=onnx.TensorProto.FLOAT)]


def _as_int8(name: str, value: np.ndarray) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    """A quarter of the bytes: each output channel in steps of 1/127 of its largest weight, widened when it runs."""
    channels = 1 if value.ndim == 2 else 0  # matrices are [in, out], kernels of convolutions [out, in, ...]
    others = tuple(axis for axis in range(value.ndim) if axis != channels)
    largest = np.abs(value).max(others, keepdims=True)
    step = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    parts = {f"{name}_int8": np.round(value / step).astype(np.int8), f"{name}_step": step.ravel()}
    return parts, [helper.make_node("DequantizeLinear", [*parts], [name], axis=channels)]


NARROWED = {"float16": _as_float16, "int8": _as_int8}


def is_known(size: Size) -> bool:
    """Whether a size is a number already."""
    return isinstance(size, (int, np.integer))
