# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# Types of the handler are those of the machine, not Python's.
"""The compiled signal handler of :mod:`weightprint.engine.guard`; import it only there, after its symbols are set."""

from __future__ import annotations

import mmap

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from weightprint.engine.guard import PREVIOUS, TABLE, WINDOWS
from weightprint_kernels.compiled import compiled_callback

FAULT_ADDRESS = 16  # offset of si_addr in siginfo_t of 64-bit Linux
READABLE, PRIVATE_FIXED_ANONYMOUS = 0x1, 0x32  # protection and flags of mmap
PAGE_BYTES = mmap.PAGESIZE
I8, I64 = ir.IntType(8), ir.IntType(64)


def _address_of(symbol: str):
    """An intrinsic that gives the address of a symbol."""

    @intrinsic
    def address(_context):
        def generate(_context, builder, _signature, _arguments):
            place = builder.module.globals.get(symbol) or ir.GlobalVariable(builder.module, I8, symbol)
            place.linkage = "external"
            return builder.ptrtoint(place, I64)

        return types.intp(), generate

    return address


windows = _address_of(TABLE)
previous = _address_of(PREVIOUS)


@intrinsic
def load(_context, address):
    """The 64 bits at an address."""
    # Atomic, so that each is a load of its own: two of one place tell whether it changed in between.
    return types.int64(types.intp), lambda _context, builder, _signature, arguments: builder.load_atomic(
        builder.inttoptr(arguments[0], I64.as_pointer()), "acquire", align=8
    )


@intrinsic
def store(_context, address, value):
    """Write 64 bits to an address."""

    def generate(context, builder, _signature, arguments):
        builder.store(arguments[1], builder.inttoptr(arguments[0], I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), generate


map_pages = types.ExternalFunction(
    "mmap", types.intp(types.intp, types.intp, types.int32, types.int32, types.int32, types.int64)
)
set_action = types.ExternalFunction("sigaction", types.int32(types.int32, types.intp, types.intp))


@compiled_callback(types.void(types.int32, types.intp, types.intp))
def on_missing_page(number, info, _context):
    """Zero pages for the rest of the window that the fault lies in; else back to the action there was before."""
    address = load(info + FAULT_ADDRESS)
    table = windows()
    for row in range(WINDOWS):
        entry = table + 24 * row
        stop, start = load(entry + 8), load(entry)
        # A row that is closed and opened meanwhile is not the one that the fault lies in.
        if start <= address < stop and load(entry + 8) == stop:
            store(entry + 16, 1)
            page = address // PAGE_BYTES * PAGE_BYTES
            map_pages(page, stop - page, READABLE, PRIVATE_FIXED_ANONYMOUS, -1, 0)
            return
    # The instruction is run again and meets that action.
    set_action(number, previous(), 0)
