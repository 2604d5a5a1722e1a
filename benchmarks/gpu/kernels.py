"""Two more kernels beside those of gpu-check, as PTX: one that only reads memory, and one that only writes it."""

from tf_um_patch.gpu_check import kernels

# Each thread takes every so many words of a range. "probe_read" leaves the sum of a thread's words in sums[thread], so
# that no read can be left out; "probe_write" sets words[i] = value for i < count.
_HEAD = b"""
.visible .entry %(name)s(.param .u64 words, .param .u64 count, .param .u32 value, .param .u64 sums)
{
    .reg .pred %%done;
    .reg .u32 %%block, %%width, %%lane, %%blocks, %%value, %%word;
    .reg .u64 %%address, %%index, %%stride, %%count, %%start, %%offset, %%sums;
    ld.param.u64 %%start, [words];
    ld.param.u64 %%count, [count];
    ld.param.u32 %%value, [value];
    ld.param.u64 %%sums, [sums];
    cvta.to.global.u64 %%start, %%start;
    cvta.to.global.u64 %%sums, %%sums;
    mov.u32 %%block, %%ctaid.x;
    mov.u32 %%width, %%ntid.x;
    mov.u32 %%lane, %%tid.x;
    mov.u32 %%blocks, %%nctaid.x;
    cvt.u64.u32 %%offset, %%lane;
    mul.wide.u32 %%index, %%block, %%width;
    add.u64 %%index, %%index, %%offset;
    shl.b64 %%offset, %%index, 2;
    add.u64 %%sums, %%sums, %%offset;
    mul.wide.u32 %%stride, %%blocks, %%width;
NEXT:
    setp.ge.u64 %%done, %%index, %%count;
    @%%done bra END;
    shl.b64 %%offset, %%index, 2;
    add.u64 %%address, %%start, %%offset;
%(access)s
    add.u64 %%index, %%index, %%stride;
    bra NEXT;
END:
%(end)s    ret;
}
"""
_READ = {
    b"name": b"probe_read",
    b"access": b"    ld.global.u32 %word, [%address];\n    add.u32 %value, %value, %word;",
    b"end": b"    st.global.u32 [%sums], %value;\n",
}
_WRITE = {b"name": b"probe_write", b"access": b"    st.global.u32 [%address], %value;", b"end": b""}
PTX = kernels.PTX + _HEAD % _READ + _HEAD % _WRITE
