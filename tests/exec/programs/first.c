#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>
int main(void){ int k=open("/dev/kvm",O_RDWR); printf("fd %d api %d\n",k,ioctl(k,KVM_GET_API_VERSION,0)); int vm=ioctl(k,KVM_CREATE_VM,1); printf("vm %d\n",vm); return 0;}
