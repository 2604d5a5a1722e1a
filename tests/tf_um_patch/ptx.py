"""Runs PTX, of the few instructions that the kernels of the checks on a GPU are made of, one thread after the other."""

import re
import struct

_BITS = {"u32": 32, "b32": 32, "u64": 64, "b64": 64}
_FORMATS = {32: "<I", 64: "<Q"}
_MOST_STEPS = 100000  # of a thread


def kernel(source, name):
    """Parameters and body of a kernel, as (names, [(guard, operation, operands) or label])."""
    match = re.search(r"\.entry " + name + r"\(([^)]*)\)\s*\{(.*?)\n\}", source, re.DOTALL)
    parameters = [parameter.split()[-1] for parameter in match.group(1).split(",")]
    body = []
    for line in match.group(2).split("\n"):
        line = line.strip()
        if line.endswith(":"):
            body.append(line[:-1])
        elif line and not line.startswith(".reg"):
            guard, operation, operands = re.match(r"(?:@(%\w+) )?([\w.]+) ?(.*);$", line).groups()
            body.append((guard, operation, [operand.strip() for operand in operands.split(",")]))
    return parameters, body


def run(source, name, blocks, threads, arguments, memory):
    """Run all threads of a kernel.

    Args:
        arguments: the values of its parameters, in their order.
        memory: a bytearray; addresses are offsets in it.
    """
    parameters, body = kernel(source, name)
    for block in range(blocks):
        for lane in range(threads):
            special = {"%ctaid.x": block, "%tid.x": lane, "%ntid.x": threads, "%nctaid.x": blocks}
            _thread(body, dict(zip(parameters, arguments)), special, memory)


def _thread(body, parameters, special, memory):
    registers, position = dict(special), 0

    def value(operand):
        return registers[operand] if operand.startswith("%") else int(operand)

    for _ in range(_MOST_STEPS):
        if isinstance(body[position], str):
            position += 1
            continue
        guard, operation, operands = body[position]
        position += 1
        if guard is not None and not registers[guard]:
            continue
        if operation == "ret":
            return
        if operation == "bra":
            position = body.index(operands[0])
        elif operation.startswith("st.global."):
            bits = _BITS[operation[len("st.global.") :]]
            struct.pack_into(_FORMATS[bits], memory, value(operands[0][1:-1]), value(operands[1]))
        elif operation.startswith("ld.global."):
            bits = _BITS[operation[len("ld.global.") :]]
            (registers[operands[0]],) = struct.unpack_from(_FORMATS[bits], memory, value(operands[1][1:-1]))
        elif operation.startswith("ld.param."):
            registers[operands[0]] = parameters[operands[1][1:-1]]
        else:
            registers[operands[0]] = _compute(operation, [value(operand) for operand in operands[1:]])
    raise AssertionError("the kernel does not end")


def _compute(operation, values):
    verb, _, kind = operation.rpartition(".")
    bits = _BITS[kind] * (2 if verb == "mul.wide" else 1)
    if verb == "cvt.u64":
        bits = 64
    if verb.startswith("setp."):
        return {"setp.ne": values[0] != values[-1], "setp.ge": values[0] >= values[-1]}[verb]
    result = {
        "add": lambda: values[0] + values[1],
        "sub": lambda: values[0] - values[1],
        "shl": lambda: values[0] << values[1],
        "mov": lambda: values[0],
        "cvt.u64": lambda: values[0],
        "cvta.to.global": lambda: values[0],
        "mul.wide": lambda: values[0] * values[1],
        "mad.lo": lambda: values[0] * values[1] + values[2],
    }[verb]()
    return result % 2**bits
