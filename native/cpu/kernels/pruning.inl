// Purpose: the loops of kernels_pruning.h. Included by kernels/all.inl in a namespace of its own.

static const PruningKernels pruningTable = {};
