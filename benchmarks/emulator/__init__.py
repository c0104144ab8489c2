"""Runs the PTX that Triton compiles a kernel to, thread by thread, on a machine without a GPU.

Triton's interpreter runs a kernel's Python, one program after another. What a GPU gets is something else: 128 threads or more that share the
work, with loads of several elements that must be aligned, barriers, shuffles, shared memory and programs that run side by side.
``kernels.compiled_kernels`` puts that code in the place of the interpreter: threads run in lockstep as NumPy arrays, and what a GPU would only
do wrong is an error here: an address outside the tensors of the launch or not aligned for its load, a race within shared memory, a shuffle
without all threads of the warp, a barrier that some do not reach.

``program`` reads PTX, ``machine`` runs it, ``arithmetic``, ``memory``, ``warps`` and ``warpgroups`` say what its instructions do, and ``pending``
keeps what they have begun. Instructions are those of the kernels here; another raises ``NotImplementedError`` with its name. Times cannot be had
from this.
"""
