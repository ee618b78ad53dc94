"""Our ops in other libraries' models. One file a library; importing eagle_kernels imports none of them."""
