"""Two kernels as PTX, which every driver compiles for its GPU: compute capability 6.0 and later. No CUDA toolkit."""

from typing import List

# "tfum_spin" is arithmetic alone: out[thread] becomes the value `rounds` steps after the thread's number in a sequence.
# "tfum_add" reads and writes memory: words[i] += amount for i < count.
PTX = b"""
.version 6.0
.target sm_60
.address_size 64

.visible .entry tfum_spin(.param .u64 out, .param .u32 rounds)
{
    .reg .pred %more;
    .reg .u32 %left, %value, %block, %width, %lane, %thread;
    .reg .u64 %address, %offset;
    ld.param.u64 %address, [out];
    ld.param.u32 %left, [rounds];
    mov.u32 %block, %ctaid.x;
    mov.u32 %width, %ntid.x;
    mov.u32 %lane, %tid.x;
    mad.lo.u32 %thread, %block, %width, %lane;
    mov.u32 %value, %thread;
NEXT:
    mad.lo.u32 %value, %value, 1664525, 1013904223;
    sub.u32 %left, %left, 1;
    setp.ne.u32 %more, %left, 0;
    @%more bra NEXT;
    cvta.to.global.u64 %address, %address;
    mul.wide.u32 %offset, %thread, 4;
    add.u64 %address, %address, %offset;
    st.global.u32 [%address], %value;
    ret;
}

.visible .entry tfum_add(.param .u64 words, .param .u64 count, .param .u32 amount)
{
    .reg .pred %done;
    .reg .u32 %block, %width, %lane, %blocks, %amount, %value;
    .reg .u64 %address, %index, %stride, %count, %start, %offset;
    ld.param.u64 %start, [words];
    ld.param.u64 %count, [count];
    ld.param.u32 %amount, [amount];
    cvta.to.global.u64 %start, %start;
    mov.u32 %block, %ctaid.x;
    mov.u32 %width, %ntid.x;
    mov.u32 %lane, %tid.x;
    mov.u32 %blocks, %nctaid.x;
    cvt.u64.u32 %offset, %lane;
    mul.wide.u32 %index, %block, %width;
    add.u64 %index, %index, %offset;
    mul.wide.u32 %stride, %blocks, %width;
NEXT:
    setp.ge.u64 %done, %index, %count;
    @%done bra END;
    shl.b64 %offset, %index, 2;
    add.u64 %address, %start, %offset;
    ld.global.u32 %value, [%address];
    add.u32 %value, %value, %amount;
    st.global.u32 [%address], %value;
    add.u64 %index, %index, %stride;
    bra NEXT;
END:
    ret;
}
"""
FACTOR, ADDEND = 1664525, 1013904223


def spun(threads: int, rounds: int) -> List[int]:
    """What "tfum_spin" leaves for each thread; a step is affine, and so are many, so that none is computed alone."""
    factor, addend = FACTOR, ADDEND
    whole = (1, 0)
    while rounds:
        if rounds % 2:
            whole = (whole[0] * factor % 2**32, (whole[1] * factor + addend) % 2**32)
        addend = (factor * addend + addend) % 2**32
        factor = factor * factor % 2**32
        rounds //= 2
    return [(thread * whole[0] + whole[1]) % 2**32 for thread in range(threads)]
