"""Packed bits against Python's own little-endian integers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from networks.bits import pack, unpack


def test_eight_to_a_byte_lowest_first():
    bits = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1], [1, 1, 1, 1, 0, 0]]).bool()
    packed = pack(bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [0b00000001, 0b11111010, 0b00]
    assert unpack(packed, 18).equal(bits.flatten())
    assert pack(bits.T).tolist() == [0b00100101, 0b00001101, 0b1]  # row-major, whatever the memory's order


@given(st.lists(st.booleans(), max_size=70))
def test_packing_is_an_integer_in_little_endian_and_unpacking_undoes_it(bits):
    packed = pack(torch.tensor(bits, dtype=torch.bool))
    assert len(packed) == -(-len(bits) // 8)
    assert int.from_bytes(bytes(packed.tolist()), "little") == sum(bit << i for i, bit in enumerate(bits))
    assert unpack(packed, len(bits)).tolist() == bits
