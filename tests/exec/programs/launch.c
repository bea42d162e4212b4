/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VMM that launches an SNP guest or a TD by a plan, up to the first KVM_RUN.
 *
 *	launch snp|tdx in-place|copy PLAN
 *
 * PLAN has lines: "region GPA SIZE", "step GPA SIZE TYPE FILE" (TYPE: SNP's page type, or 1 if TDX is to measure it; FILE: its
 * contents or "-"), "vcpu FILE" (struct kvm_regs, kvm_sregs, kvm_fpu, XCR0, PAT), "hob GPA".
 */
#include "gmem.h"

#include <inttypes.h>

enum { SNP_VM = 4, TDX_VM = 5 };
enum { SEV_INIT2 = 22, SNP_START = 100, SNP_UPDATE, SNP_FINISH };
enum { TDX_CAPABILITIES, TDX_INIT_VM, TDX_INIT_VCPU, TDX_INIT_MEM_REGION, TDX_FINALIZE };

struct sev_cmd {
	uint32_t id, pad;
	uint64_t data;
	uint32_t error, sev_fd;
};

struct sev_init {
	uint64_t vmsa_features;
	uint32_t flags;
	uint16_t ghcb_version, pad1;
	uint32_t pad2[8];
};

struct snp_start {
	uint64_t policy;
	uint8_t gosvw[16];
	uint16_t flags;
	uint8_t pad0[6];
	uint64_t pad1[4];
};

struct snp_update {
	uint64_t gfn, uaddr, len;
	uint8_t type, pad0;
	uint16_t flags;
	uint32_t pad1;
	uint64_t pad2[4];
};

struct snp_finish {
	uint64_t id_block, id_auth;
	uint8_t id_block_en, auth_key_en, vcek_disabled, host_data[32], pad0[3];
	uint16_t flags;
	uint64_t pad1[4];
};

struct tdx_cmd {
	uint32_t id, flags;
	uint64_t data, hw_error;
};

struct tdx_capabilities {
	uint64_t attributes, xfam, calls[4], reserved[250];
	struct kvm_cpuid2 cpuid;
	struct kvm_cpuid_entry2 entries[256];
};

struct tdx_init_vm {
	uint64_t attributes, xfam, digests[18], reserved[12];
	struct kvm_cpuid2 cpuid;
	struct kvm_cpuid_entry2 entries[1];
};

struct tdx_region {
	uint64_t source, gpa, nr_pages;
};

struct registers {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_fpu fpu;
	uint64_t xcr0, pat;
};

static struct region {
	uint64_t gpa, size;
	int gmem;
	unsigned char *memory;
} regions[16];
static int nr_regions, nr_vcpus, vcpus[16], sev_fd, slots;
static bool tdx, in_place;
static uint64_t hob;

static void sev(uint32_t id, void *data)
{
	struct sev_cmd cmd = {.id = id, .data = (uint64_t)data, .sev_fd = (uint32_t)sev_fd};

	CHECK(ioctl(vm_fd, KVM_MEMORY_ENCRYPT_OP, &cmd) == 0, "command %u, firmware status %#x", id, cmd.error);
}

static void td(int fd, uint32_t id, uint32_t flags, uint64_t data)
{
	struct tdx_cmd cmd = {.id = id, .flags = flags, .data = data};

	CHECK(ioctl(fd, KVM_MEMORY_ENCRYPT_OP, &cmd) == 0, "command %u, status %#" PRIx64, id, cmd.hw_error);
}

static void start(void)
{
	static struct tdx_capabilities capabilities = {.cpuid = {.nent = 256}};
	struct tdx_init_vm init = {.attributes = 1 << 28, .xfam = 3, .cpuid = {.nent = 1}};
	struct sev_init init2 = {0};
	struct snp_start snp = {.policy = 0x30000};

	make_vm(tdx ? TDX_VM : SNP_VM);
	if (tdx) {
		td(vm_fd, TDX_CAPABILITIES, 0, (uint64_t)&capabilities);
		CHECK(capabilities.attributes & init.attributes);
		init.entries[0].function = 0x80000008;
		init.entries[0].eax = 48 << 16;
		td(vm_fd, TDX_INIT_VM, 0, (uint64_t)&init);
		return;
	}
	sev_fd = open("/dev/sev", O_RDWR | O_CLOEXEC);
	CHECK(sev_fd >= 0);
	sev(SEV_INIT2, &init2);
	sev(SNP_START, &snp);
}

static void add_region(uint64_t gpa, uint64_t size)
{
	struct region *region = &regions[nr_regions++];
	struct memory_region2 slot = {.slot = (uint32_t)slots++, .flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = gpa, .memory_size = size};

	*region = (struct region){gpa, size, make_gmem(size, in_place ? GMEM_MMAP | GMEM_INIT_SHARED : 0), NULL};
	region->memory = in_place ? map_gmem(region->gmem, size)
				  : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	slot.guest_memfd = (uint32_t)region->gmem;
	slot.userspace_addr = (uint64_t)region->memory;
	CHECK(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &slot) == 0);
}

static void add_vcpu(const char *path)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry;
	} cpuid = {.head = {.nent = 1}, .entry = {.function = 1, .ecx = 1 << 21}};
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = {.head = {.nmsrs = 1}, .entry = {.index = 0x277}};
	struct kvm_xcrs xcrs = {.nr_xcrs = 1};
	struct registers state;
	int fd = ioctl(vm_fd, KVM_CREATE_VCPU, nr_vcpus);
	FILE *file;

	CHECK(fd >= 0);
	vcpus[nr_vcpus++] = fd;
	if (tdx) {
		CHECK(ioctl(fd, KVM_SET_CPUID2, &cpuid) == 0);
		td(fd, TDX_INIT_VCPU, 0, hob);
		return;
	}
	file = fopen(path, "r");
	CHECK(file && fread(&state, sizeof(state), 1, file) == 1, "%s", path);
	fclose(file);
	xcrs.xcrs[0].value = state.xcr0;
	msrs.entry.data = state.pat;
	CHECK(ioctl(fd, KVM_SET_REGS, &state.regs) == 0);
	CHECK(ioctl(fd, KVM_SET_SREGS, &state.sregs) == 0);
	CHECK(ioctl(fd, KVM_SET_FPU, &state.fpu) == 0);
	CHECK(ioctl(fd, KVM_SET_XCRS, &xcrs) == 0);
	CHECK(ioctl(fd, KVM_SET_MSRS, &msrs) == 1);
}

static void populate(uint64_t gpa, uint64_t size, unsigned type, uint64_t source)
{
	struct snp_update update = {.gfn = gpa / PAGE, .uaddr = source, .len = size, .type = (uint8_t)type};
	struct tdx_region region = {.source = source, .gpa = gpa, .nr_pages = size / PAGE};

	if (tdx) {
		td(vcpus[0], TDX_INIT_MEM_REGION, type, (uint64_t)&region);
		CHECK(region.nr_pages == 0);
		return;
	}
	while (update.len)
		sev(SNP_UPDATE, &update);
}

static void step(uint64_t gpa, uint64_t size, unsigned type, const char *path)
{
	struct region *region = regions;
	unsigned char *at;
	FILE *file;

	while (gpa < region->gpa || gpa >= region->gpa + region->size)
		CHECK(++region < regions + nr_regions, "gpa %#" PRIx64, gpa);
	at = region->memory + (gpa - region->gpa);
	if (strcmp(path, "-")) {
		file = fopen(path, "r");
		CHECK(file && fread(at, 1, size, file) == size, "%s", path);
		fclose(file);
	}
	if (in_place) {
		convert(region->gmem, gpa - region->gpa, size, PRIVATE);
		catch_bus_errors();
		expect_private(at, PAGE);
	} else {
		struct memory_attributes attributes = {.address = gpa, .size = size, .attributes = PRIVATE};

		CHECK(ioctl(vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes) == 0);
	}
	populate(gpa, size, type, in_place ? 0 : (uint64_t)at);
}

static void finish(void)
{
	struct snp_finish snp = {0};

	if (tdx)
		td(vm_fd, TDX_FINALIZE, 0, 0);
	else
		sev(SNP_FINISH, &snp);
	puts("launched");
	errno = 0;
	printf("KVM_RUN %d %s\n", ioctl(vcpus[0], KVM_RUN, 0), strerror(errno));
}

int main(int argc, char **argv)
{
	char line[4096], path[4000];
	uint64_t gpa, size;
	unsigned type;
	FILE *plan;

	CHECK(argc == 4);
	tdx = !strcmp(argv[1], "tdx");
	in_place = !strcmp(argv[2], "in-place");
	start();
	plan = fopen(argv[3], "r");
	CHECK(plan);
	while (fgets(line, sizeof(line), plan)) {
		if (sscanf(line, "hob %" SCNi64, &hob) == 1)
			continue;
		if (sscanf(line, "region %" SCNi64 " %" SCNi64, &gpa, &size) == 2)
			add_region(gpa, size);
		else if (sscanf(line, "step %" SCNi64 " %" SCNi64 " %u %3999s", &gpa, &size, &type, path) == 4)
			step(gpa, size, type, path);
		else if (sscanf(line, "vcpu %3999s", path) == 1)
			add_vcpu(path);
		else
			CHECK(false, "line %s", line);
	}
	finish();
	return 0;
}
