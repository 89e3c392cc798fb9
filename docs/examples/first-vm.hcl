# The smallest useful VM. Try it with:
#   debvisor plan  -f docs/examples/first-vm.hcl
#   debvisor apply -f docs/examples/first-vm.hcl

vm "web" {
  tenant = "default"        # who owns it; "default" may be left out
  labels = { app = "demo" } # free pairs, to find and group VMs
  cpus   = 1                # virtual CPUs
  memory = "128MiB"         # also KiB, GiB, TiB, or plain bytes

  disk "root" {
    image = "tiny"   # an image of the same tenant, cloned on first start
    size  = "256MiB" # at least the image's own size
    pool  = "local"  # where the disk lies
  }
}
