# /etc/debvisor/agent.hcl: what the agent of one node is told. Every line may
# be left out; what stands here is the default, or an example where there is
# none. Flags of the same name win: debvisor agent --help.

data_dir   = "/var/lib/debvisor" # made by debvisor init or debvisor join
hypervisor = "auto"              # libvirt where it is installed, else sim
log_level  = "info"              # trace, debug, info, warn, error
log_format = "text"              # or json

# As the node was made, unless said here:
# listen    = "0.0.0.0:7443"   # TCP for everything, UDP for gossip
# advertise = "10.0.0.1:7443"  # where other nodes reach this one
# witness   = true             # votes, runs no guests

# libvirt_socket = "/run/libvirt/libvirt-sock"
# share          = 3           # so many nodes share this machine: each offers its part

# Images are fetched from public https addresses, and besides from:
# outbound_allow = ["10.20.0.0/16"]            # private networks
# outbound_http  = false                       # true: http:// as well
# outbound_ca    = "/etc/debvisor/mirror.pem"  # servers with these certificates

# The machine that the simulated hypervisor pretends to be:
# sim {
#   cpus      = 16
#   memory    = "64GiB"
#   boot_time = "1s"
# }
