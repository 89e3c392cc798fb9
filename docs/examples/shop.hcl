# A small shop: three web servers that never share a node, a database with a
# disk of its own, and a network between them. It expects an image "debian".
#   debvisor apply -f docs/examples/shop.hcl --var web_memory=1GiB

set = "shop" # objects are labelled managed-by=shop; --prune goes by that

variable "web_memory" {
  type        = string
  default     = "512MiB"
  description = "memory of each web server"
}

variable "ssh_key" {
  type        = string
  default     = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExample ops"
  description = "public key that may log in as ops"
}

locals {
  tenant = "default"
  subnet = "10.20.0.0/24"
  labels = { shop = "main" }
  webs   = { for i in range(1, 4) : tostring(i) => cidrhost(local.subnet, 10 + i) }
  db     = cidrhost(local.subnet, 5)
}

network "lan" {
  tenant      = local.tenant
  bridge      = "dvlan0"
  description = "between the web servers and the database"
}

volume "orders" {
  tenant = local.tenant
  labels = local.labels
  pool   = "local"
  size   = "10GiB"
}

vm "web" {
  for_each = local.webs # makes web-1, web-2 and web-3
  tenant   = local.tenant
  labels   = merge(local.labels, { app = "web", number = each.key })
  cpus     = 2
  memory   = var.web_memory

  disk "root" {
    image = "debian"
    size  = "4GiB"
  }

  nic { network = "lan" }

  cloud_init {
    hostname = format("web-%s", each.key)
    packages = ["nginx"]

    user "ops" {
      ssh_keys = [var.ssh_key]
      sudo     = true
    }

    file "/etc/shop.conf" {
      mode    = "0644"
      content = <<-EOT
        address = ${each.value}
        database = ${local.db}
      EOT
    }

    commands = [["systemctl", "enable", "--now", "nginx"]]
  }

  placement {
    anti_affinity = { app = "web" } # never two of them on one node
  }

  ha = "lease" # what shall happen when its node is lost; kept, not acted upon yet
}

vm "db" {
  tenant   = local.tenant
  labels   = merge(local.labels, { app = "db" })
  cpus     = 2
  memory   = "2GiB"
  priority = 100 # before the web servers when nodes are scarce

  disk "root" {
    image = "debian"
    size  = "4GiB"
  }

  disk "orders" {
    volume = "orders" # outlives the VM
    cache  = "none"
  }

  nic { network = "lan" }

  cloud_init {
    packages = ["postgresql"]
  }
}
